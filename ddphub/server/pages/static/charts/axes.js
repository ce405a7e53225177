// Ranges and marks of a chart's axes.

import { clockMarks, duration, markNumber } from "./numbers.js";

const FONT = "11px system-ui, sans-serif";
/** Beyond this, the distance between two numbers is itself no number. */
const HUGE = 1e300;

/** What uPlot asks for y: some air above and below, also around a single value. */
export function valueRange(low, high) {
  if (low === null || low === undefined) return [0, 1];
  const [least, greatest] = [Math.max(low, -HUGE), Math.min(high, HUGE)];
  const air = greatest > least ? 0.06 * (greatest - least) : 0.1 * Math.abs(least) || 1;
  return [least - air, greatest + air];
}

/** The same where y is logarithmic; every value is above 0. */
export function logRange(low, high) {
  if (!(low > 0)) return [0.1, 1];
  const air = high > low ? (high / low) ** 0.06 : 1.5;
  return [Math.max(low / air, 1e-320), Math.min(high * air, HUGE)];
}

/** Marks of a logarithmic axis: powers of ten where there are two or more, else even steps. */
export function logMarks(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const step = Math.max(1, Math.ceil((last - first) / 7));
  const powers = [];
  for (let power = first; power <= last; power += step) powers.push(Number(`1e${power}`));
  if (powers.length >= 2) return powers;
  const rough = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const size = unit * [1, 2, 5, 10].find((n) => n * unit >= rough);
  const marks = [];
  for (let mark = Math.ceil(low / size) * size; mark <= high && marks.length < 12; mark += size) marks.push(mark);
  return marks;
}

/** The distances that marks may have: 1, 2 and 5 of the powers of ten around what is shown. */
function roundSteps(low, high, least) {
  const last = Math.min(300, Math.ceil(Math.log10(high - low)) + 1);
  const first = Math.max(least, last - 6);
  const powers = Array.from({ length: Math.max(1, last - first + 1) }, (_, i) => first + i);
  return powers.flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
}

/** The same for sizes in memory: powers of two. */
function binarySteps(low, high) {
  const last = Math.max(0, Math.ceil(Math.log2(high - low)) + 1);
  return Array.from({ length: 12 }, (_, i) => 2 ** (last - 11 + i));
}

const [MINUTE, HOUR, DAY] = [60, 3600, 86_400];
/** Distances of times. */
const TIME_STEPS = [1, 2, 5, 10, 15, 30].flatMap((n) => [n, n * MINUTE]).concat([1, 2, 3, 6, 12].map((n) => n * HOUR));
TIME_STEPS.push(...[1, 2, 7, 14, 28, 91, 182, 365].map((n) => n * DAY));
TIME_STEPS.sort((a, b) => a - b);

/** Times at round places of the local clock. */
function timeMarks(low, high, increment, local) {
  const ahead = local ? -60 * new Date(low * 1000).getTimezoneOffset() : 0;
  const first = Math.ceil((low + ahead) / increment) * increment - ahead;
  const marks = [];
  for (let mark = first; mark <= high; mark += increment) marks.push(mark);
  return marks;
}

function xMarks(kind) {
  if (kind === "time") return (_, marks, _axis, _space, increment) => clockMarks(marks, increment);
  if (kind === "elapsed") return (_, marks) => marks.map(duration);
  return (_, marks, _axis, _space, increment) => marks.map((mark) => markNumber(mark, increment));
}

/**
 * The axes of a chart, for uPlot.
 * @param {string} kind what x is
 * @param {boolean} log whether y is logarithmic
 * @param {import("./colours.js").Colours} colours
 * @param {import("./units.js").Unit} unit of y
 */
export function axes(kind, log, colours, unit) {
  const common = {
    stroke: colours.text,
    font: FONT,
    grid: { stroke: colours.grid, width: 1 },
    ticks: { stroke: colours.grid, width: 1, size: 4 },
  };
  const counted = kind === "step" || kind === "epoch";
  const x = { ...common, space: counted ? 56 : 72, values: xMarks(kind), size: kind === "time" ? 40 : 28 };
  if (counted) {
    x.incrs = (_, _axis, low, high) => roundSteps(low, high, 0);
  } else {
    x.incrs = TIME_STEPS;
    x.splits = (_, _axis, low, high, increment) => timeMarks(low, high, increment, kind === "time");
  }
  const y = {
    ...common,
    space: 32,
    incrs: (_, _axis, low, high) => (unit.binary ? binarySteps(low, high) : roundSteps(low, high, -320)),
    values: (_, marks, _axis, _space, increment) =>
      marks.map((mark) => (log ? unit.write(mark) : unit.mark(mark, increment))),
    size: (_, words) => 16 + 6.5 * Math.max(3, ...(words ?? []).map((word) => word.length)),
  };
  if (log) Object.assign(y, { splits: (_, _axis, low, high) => logMarks(low, high), filter: (_, marks) => marks });
  return [x, y];
}
