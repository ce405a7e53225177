// Zooming and panning by mouse, wheel, fingers and keys.

const STEP = 0.15;
const CLOSER = 0.7;

/**
 * @typedef {object} Canvas what of a chart is navigated
 * @property {() => [number, number]|null} shown from and to of x as it is drawn now
 * @property {(from: number, to: number) => void} show
 * @property {() => void} reset
 * @property {(by: number) => void} walk move the cursor by so many points
 */

/** Move what is shown by a part of its width. */
function pan(canvas, part) {
  const [from, to] = canvas.shown();
  canvas.show(from + part * (to - from), to + part * (to - from));
}

/** Show `factor` times as much, with the place at `part` of the width where it is. */
function zoom(canvas, factor, part = 0.5) {
  const [from, to] = canvas.shown();
  const at = from + part * (to - from);
  canvas.show(at - part * factor * (to - from), at + (1 - part) * factor * (to - from));
}

/**
 * Keys on a focused chart: arrows pan, + and - zoom, 0 and Escape reset, Shift with an arrow walks from point to point.
 * @param {HTMLElement} element
 * @param {Canvas} canvas
 */
export function byKeys(element, canvas) {
  const keys = {
    ArrowLeft: (event) => (event.shiftKey ? canvas.walk(-1) : pan(canvas, -STEP)),
    ArrowRight: (event) => (event.shiftKey ? canvas.walk(1) : pan(canvas, STEP)),
    "+": () => zoom(canvas, CLOSER),
    "=": () => zoom(canvas, CLOSER),
    "-": () => zoom(canvas, 1 / CLOSER),
    0: () => canvas.reset(),
    Escape: () => canvas.reset(),
  };
  element.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.target !== element || event.ctrlKey || event.metaKey || event.altKey || !canvas.shown()) return;
    event.preventDefault();
    act(event);
  });
}

/**
 * Shift and drag pans, Control and wheel (or two fingers on a touchpad) zooms; uPlot draws the drag that zooms.
 * @param {HTMLElement} over what lies over the drawn lines
 * @param {Canvas} canvas
 * @returns {(event: MouseEvent) => boolean} takes a mouse button going down; true when it begins a pan
 */
export function byMouse(over, canvas) {
  over.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey || !canvas.shown()) return;
      event.preventDefault();
      const { left, width } = over.getBoundingClientRect();
      zoom(canvas, Math.exp(Math.max(-50, Math.min(50, event.deltaY)) / 100), (event.clientX - left) / width);
    },
    { passive: false },
  );
  return (down) => {
    if (!down.shiftKey || down.button !== 0 || !canvas.shown()) return false;
    const [from, to] = canvas.shown();
    const scale = (to - from) / over.clientWidth;
    const move = (event) => {
      const moved = (event.clientX - down.clientX) * scale;
      canvas.show(from - moved, to - moved);
    };
    const end = () => {
      document.removeEventListener("mousemove", move);
      document.removeEventListener("mouseup", end);
    };
    document.addEventListener("mousemove", move);
    document.addEventListener("mouseup", end);
    return true;
  };
}

/**
 * One finger moves what is zoomed sideways, two zoom. Up and down stay the page's own: a chart is no trap for scrolls.
 * @param {HTMLElement} over has `touch-action: pan-y`
 * @param {Canvas} canvas
 */
export function byFingers(over, canvas) {
  const fingers = new Map();
  let start = null;
  const middle = () => [...fingers.values()].reduce((sum, x) => sum + x, 0) / fingers.size;
  const apart = () => Math.max(20, Math.max(...fingers.values()) - Math.min(...fingers.values()));
  const begin = () => {
    start = fingers.size && canvas.shown() ? { shown: canvas.shown(), middle: middle(), apart: apart() } : null;
  };
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch" || fingers.size === 2) return;
    fingers.set(event.pointerId, event.clientX);
    begin();
  });
  over.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId) || !start) return;
    fingers.set(event.pointerId, event.clientX);
    const [from, to] = start.shown;
    const factor = fingers.size === 2 ? start.apart / apart() : 1;
    const { left, width } = over.getBoundingClientRect();
    const held = from + ((start.middle - left) / width) * (to - from);
    const part = (middle() - left) / width;
    canvas.show(held - part * factor * (to - from), held + (1 - part) * factor * (to - from));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    over.addEventListener(name, (event) => {
      if (fingers.delete(event.pointerId)) begin();
    });
  }
}
