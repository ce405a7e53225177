// One drawn chart: lines and bands on a canvas, by uPlot.

/* global uPlot */

import { axes, logRange, valueRange } from "./axes.js";
import { keyOf, shared, spread } from "./lines.js";
import { byFingers, byMouse } from "./navigation.js";

const SEARCHED = 300;

/** Charts tell each other where the cursor is, and nothing else: a drag in one is no drag in the others. */
const SHARED_CURSOR = {
  setSeries: false,
  scales: ["x", null],
  filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
};

/** @typedef {import("./strokes.js").DrawnLine} DrawnLine */

/**
 * What a chart shows.
 * @typedef {object} Drawing
 * @property {DrawnLine[]} lines
 * @property {string} kind what x is: "step", "epoch", "time" or "elapsed"
 * @property {boolean} log
 * @property {import("./units.js").Unit} unit of the values
 * @property {boolean} many whether each line is one of its own, so that the one near the cursor stands out
 * @property {boolean} compared whether the lines are of several models
 * @property {string|null} group charts of one group show one cursor
 */

/** Draws into a box; keeps its canvas as long as the lines are the same ones. */
export class Plot {
  #box;
  #canvas;
  #colours;
  #onCursor;
  #uplot = null;
  #drawn = "";
  #range = [0, 1];
  #marks = [];

  /**
   * @param {HTMLElement} box
   * @param {import("./navigation.js").Canvas} canvas what the mouse and fingers move
   * @param {import("./colours.js").Colours} colours
   * @param {(x: number|null) => void} onCursor
   */
  constructor(box, canvas, colours, onCursor) {
    this.#box = box;
    this.#canvas = canvas;
    this.#colours = colours;
    this.#onCursor = onCursor;
  }

  /** uPlot's columns: x, then those of each line. */
  get data() {
    return this.#uplot?.data ?? null;
  }

  get uplot() {
    return this.#uplot;
  }

  /**
   * @param {Drawing} drawing
   * @param {[number, number]} range of x
   */
  draw(drawing, range) {
    this.#range = range;
    const { series, bands, data } = columns(drawing);
    this.#marks = drawing.compared ? [] : beginnings(drawing.lines);
    const smooth = drawing.lines.some((line) => line.smooth);
    const sign = JSON.stringify([
      drawing.lines.map((line) => [keyOf(line), line.name, line.colour, Boolean(line.low)]),
      [drawing.kind, drawing.log, drawing.many, drawing.group, smooth, this.#colours.version],
    ]);
    if (this.#uplot && sign === this.#drawn) {
      this.#uplot.setData(data, false);
      this.#uplot.setScale("x", { min: range[0], max: range[1] });
      return;
    }
    const before = this.#uplot;
    this.#uplot = new uPlot(this.#options(drawing, series, bands), data, this.#box);
    before?.destroy();
    this.#drawn = sign;
    byFingers(this.#uplot.over, this.#canvas);
  }

  /** Show another part of what is drawn. */
  move(range) {
    this.#range = range;
    this.#uplot?.setScale("x", { min: range[0], max: range[1] });
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.#box;
    if (this.#uplot && width && (width !== this.#uplot.width || height !== this.#uplot.height)) {
      this.#uplot.setSize({ width, height });
    }
  }

  /** Put the cursor at `x`. */
  point(x) {
    this.#uplot?.setCursor({ left: this.#uplot.valToPos(x, "x"), top: this.#uplot.over.clientHeight / 2 });
  }

  destroy() {
    this.#uplot?.destroy();
    this.#uplot = null;
  }

  #options({ kind, log, unit, many, group }, series, bands) {
    let pans = () => false;
    return {
      width: Math.max(this.#box.clientWidth, 100),
      height: Math.max(this.#box.clientHeight, 100),
      legend: { show: false },
      padding: [8, 16, 0, 0],
      scales: {
        x: { time: false, range: () => this.#range },
        y: { distr: log ? 3 : 1, range: (_, low, high) => (log ? logRange(low, high) : valueRange(low, high)) },
      },
      axes: axes(kind, log, this.#colours, unit),
      series: [{}, ...series],
      bands,
      focus: { alpha: 0.25 },
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        focus: { prox: many ? 24 : -1 },
        points: { size: (_, index) => (series[index - 1].stroke && series[index - 1].width > 1 ? 7 : 0) },
        dataIdx: (uplot, index, at) => withValue(uplot, uplot.data[index], at),
        bind: {
          mousedown: (_, _target, usual) => (event) => (pans(event) ? null : usual(event)),
          dblclick: () => () => this.#canvas.reset(),
        },
        ...(group && { sync: { ...SHARED_CURSOR, key: group } }),
      },
      hooks: {
        ready: [(uplot) => { pans = byMouse(uplot.over, this.#canvas); }],
        setSelect: [(uplot) => this.#selected(uplot)],
        setCursor: [(uplot) => this.#onCursor(uplot.cursor.left >= 0 ? uplot.posToVal(uplot.cursor.left, "x") : null)],
        drawAxes: [(uplot) => attemptMarks(uplot, this.#marks, this.#colours.text)],
      },
    };
  }

  #selected(uplot) {
    const { left, width } = uplot.select;
    if (width <= 0) return;
    uplot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (width >= 4) this.#canvas.show(uplot.posToVal(left, "x"), uplot.posToVal(left + width, "x"));
  }
}

/** The nearest row that has a value: lines on one x have holes where only others have points. */
function withValue(uplot, column, at) {
  const found = [-1, 1].map((side) => {
    for (let row = at; Math.abs(row - at) < SEARCHED && row >= 0 && row < column.length; row += side) {
      if (column[row] !== undefined) return row;
    }
    return null;
  });
  const [before, after] = found;
  if (before !== null && after !== null) return at - before <= after - at ? before : after;
  // Beyond its ends a line has no value, but a cursor need not be on the very point.
  const end = before ?? after ?? at;
  const { min, max } = uplot.scales.x;
  return Math.abs(uplot.data[0][end] - uplot.data[0][at]) <= 0.01 * (max - min) ? end : at;
}

/** uPlot's series, bands and data of the lines. */
function columns({ lines, log }) {
  const { x, rows } = shared(lines.map((line) => line.x));
  const [series, bands, data] = [[], [], [x]];
  const add = (values, at, looks) => {
    data.push(spread(log ? aboveZero(values) : values, rows[at], x.length));
    return series.push({ points: { show: false }, ...looks });
  };
  lines.forEach((line, at) => {
    if (line.low) {
      const high = add(line.high, at, { width: 0 });
      const low = add(log ? liftedToView(line.low) : line.low, at, { width: 0 });
      bands.push({ series: [high, low], fill: line.fill });
    }
    if (line.smooth) add(line.y, at, { stroke: line.faint, width: 1, dash: line.dash });
    const main = { stroke: line.colour, width: 1.5, dash: line.dash, points: { size: 4, width: 1, fill: line.colour } };
    add(line.smooth ?? line.y, at, main);
  });
  return { series, bands, data };
}

function aboveZero(values) {
  return values.map((value) => (value > 0 ? value : null));
}

/** A band whose low end has no logarithm reaches down to the least value that has one. */
function liftedToView(values) {
  const least = values.reduce((found, value) => (value > 0 && value < found ? value : found), Infinity);
  return values.map((value) => (value === null || value > 0 ? value : least));
}

/** [x, attempt] where each attempt but the first takes over. */
function beginnings(lines) {
  const first = new Map();
  for (const { older, attempt, x } of lines) {
    if (!older) first.set(attempt, Math.min(x[0], first.get(attempt) ?? Infinity));
  }
  return [...first].sort(([a], [b]) => a - b).slice(1).map(([attempt, x]) => [x, attempt]);
}

function attemptMarks(uplot, marks, colour) {
  const { ctx, bbox } = uplot;
  const { min, max } = uplot.scales.x;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  for (const [x, attempt] of marks) {
    if (x < min || x > max) continue;
    const at = Math.round(uplot.valToPos(x, "x", true));
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    ctx.textAlign = at > bbox.left + bbox.width / 2 ? "right" : "left";
    ctx.textBaseline = "top";
    ctx.fillText(` attempt ${attempt} `, at, bbox.top);
  }
  ctx.restore();
}
