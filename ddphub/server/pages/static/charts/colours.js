// Colours from the stylesheet, as a canvas needs them.

const COLOURS = 8;

/** The theme's colours, read anew whenever it changes. */
export class Colours extends EventTarget {
  #probe;
  version = 0;

  /** @param {HTMLElement} place an element that has the stylesheet's `--chart-...` colours */
  constructor(place) {
    super();
    this.#probe = document.createElement("span");
    this.#probe.hidden = true;
    place.append(this.#probe);
    this.#read();
    document.addEventListener("theme", () => {
      this.#read();
      this.dispatchEvent(new Event("change"));
    });
  }

  #read() {
    const resolved = (name) => {
      this.#probe.style.color = `var(${name})`;
      return getComputedStyle(this.#probe).color;
    };
    this.version += 1;
    this.text = resolved("--chart-text");
    this.grid = resolved("--chart-grid");
    this.palette = Array.from({ length: COLOURS }, (_, i) => resolved(`--chart-${i + 1}`));
    this.dark = getComputedStyle(this.#probe).getPropertyValue("--chart-dark").trim() === "1";
  }

  /**
   * A colour for the `index`-th of `count` lines: a few differ in hue, many go from dark to light, as every eye sees.
   * @param {number} index
   * @param {number} count
   */
  line(index, count) {
    if (count <= COLOURS) return this.palette[index];
    const part = index / (count - 1);
    return `hsl(${Math.round(265 - 225 * part)} 70% ${Math.round((this.dark ? 45 : 22) + 38 * part)}%)`;
  }
}

/** The colour with an opacity of its own. */
export function faded(colour, opacity) {
  const inside = colour.slice(colour.indexOf("(") + 1, -1).replaceAll(",", " ").split("/")[0];
  return `${colour.startsWith("hsl") ? "hsl" : "rgb"}(${inside} / ${opacity})`;
}
