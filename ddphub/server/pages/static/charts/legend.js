// The words below a chart: the values under the cursor, or the newest ones.

import { keyOf, nearest } from "./lines.js";
import { place } from "./numbers.js";

/** Writes one chart's legend. */
export class Legend {
  #element;
  #entries = new Map();
  #place;
  #unit;

  /**
   * @param {HTMLElement} element
   * @param {import("./units.js").Unit} unit of the values
   */
  constructor(element, unit) {
    this.#element = element;
    this.#unit = unit;
    this.#place = document.createElement("span");
    this.#place.className = "chart-place";
  }

  /**
   * @param {import("./plot.js").DrawnLine[]} lines
   * @param {number|null} x where the cursor is, null for nowhere
   * @param {string} kind what x is
   * @returns {string} what it says now
   */
  write(lines, x, kind) {
    const found = x === null ? newest(lines, this.#unit) : under(lines, x, this.#unit);
    this.#place.textContent = x === null ? "" : `${place(found[0]?.x ?? x, kind)}:`;
    const words = found.map(({ line, text }) => {
      const name = x === null ? line.label : line.name;
      return name ? `${name}: ${text}` : text;
    });
    const entries = found.map(({ line }, index) => this.#entry(line, words[index]));
    this.#element.replaceChildren(this.#place, ...entries);
    return `${this.#place.textContent} ${words.join(", ")}`.trim();
  }

  #entry(line, text) {
    const key = keyOf(line);
    let entry = this.#entries.get(key);
    if (!entry) {
      entry = document.createElement("span");
      entry.className = "chart-entry";
      entry.append(document.createElement("i"), document.createElement("span"));
      this.#entries.set(key, entry);
    }
    entry.firstChild.style.background = line.colour;
    entry.firstChild.classList.toggle("older", line.older);
    entry.lastChild.textContent = text;
    return entry;
  }
}

function said(line, index, { write }) {
  const shown = line.smooth ?? line.y;
  const value = line.y[index];
  if (value === null || value === undefined) return "not finite";
  const raw = line.smooth ? ` (raw ${write(value)})` : "";
  const band = line.low ? `, ${write(line.low[index])} to ${write(line.high[index])}` : "";
  return write(shown[index]) + raw + band;
}

/** Each line at the place nearest to `x`, if it comes that far. */
function under(lines, x, unit) {
  const found = [];
  for (const line of lines) {
    const index = nearest(line.x, x);
    if (index < 0 || line.x[0] - x > slack(line) || x - line.x.at(-1) > slack(line)) continue;
    found.push({ line, x: line.x[index], text: said(line, index, unit) });
  }
  return found;
}

const slack = (line) => (line.x.length > 1 ? (line.x.at(-1) - line.x[0]) / (line.x.length - 1) : 0);

/** The last value of each name: of a run in several attempts, the newest one's. */
function newest(lines, unit) {
  const last = new Map();
  for (const line of lines) {
    if (!line.older && line.x.length) last.set(`${line.source}/${line.rank}`, line);
  }
  return [...last.values()].map((line) => ({ line, x: line.x.at(-1), text: said(line, line.x.length - 1, unit) }));
}
