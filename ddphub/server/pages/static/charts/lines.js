// What a chart does with the lines that the hub sends: lay them on one x, join coarse and fine, smooth.

/**
 * One line of a chart.
 * @typedef {object} Line
 * @property {number} source which of the chart's models it is of
 * @property {number} attempt
 * @property {number|null} rank null for the mean of all
 * @property {boolean} older overlapped by a newer attempt
 * @property {number[]} x rising; the same x may come again
 * @property {(number|null)[]} y null where the value was not finite
 * @property {(number|null)[]|null} low
 * @property {(number|null)[]|null} high
 */

/** What makes a line itself from one answer to the next. */
export function keyOf(line) {
  return `${line.source}/${line.attempt}/${line.rank}/${line.older}`;
}

/** The first index whose x is at least `x`. */
export function firstFrom(xs, x) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the x nearest to `x`, or -1 where there is none. */
export function nearest(xs, x) {
  const after = firstFrom(xs, x);
  if (after === 0) return xs.length ? 0 : -1;
  return after === xs.length || x - xs[after - 1] <= xs[after] - x ? after - 1 : after;
}

/**
 * The rows that all lines share: each x as often as the line that has it most often.
 * @param {number[][]} columns each rising
 * @returns {{x: number[], rows: Int32Array[]}} `rows[i][j]` is the row of `columns[i][j]`
 */
export function shared(columns) {
  const at = columns.map(() => 0);
  const rows = columns.map((column) => new Int32Array(column.length));
  const x = [];
  for (;;) {
    let least = Infinity;
    for (let i = 0; i < columns.length; i++) {
      const head = columns[i][at[i]];
      if (head < least) least = head;
    }
    if (least === Infinity) return { x, rows };
    for (let i = 0; i < columns.length; i++) {
      if (columns[i][at[i]] === least) rows[i][at[i]++] = x.length;
    }
    x.push(least);
  }
}

/** `values` in the rows of `shared`; undefined where the line has no point, which is no gap. */
export function spread(values, rows, length) {
  const column = new Array(length);
  for (let i = 0; i < rows.length; i++) column[rows[i]] = values[i];
  return column;
}

/**
 * An exponential moving average that starts unbiased: the first values weigh as much as they should.
 * @param {(number|null)[]} values
 * @param {number} weight of what came before, 0 to below 1
 */
export function smoothed(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

/**
 * The coarse lines of everything with the fine ones of a range in their place, so that panning never shows a hole.
 * @param {Line[]} coarse
 * @param {Line[]} fine
 * @param {number} from the range of `fine`
 * @param {number} to
 * @returns {Line[]}
 */
export function spliced(coarse, fine, from, to) {
  const found = new Map(fine.map((line) => [keyOf(line), line]));
  const joined = coarse.map((line) => {
    const inside = found.get(keyOf(line));
    found.delete(keyOf(line));
    // A fine line goes on to the next point on either side of its range.
    const start = firstFrom(line.x, Math.min(from, inside?.x[0] ?? from));
    let end = start;
    while (end < line.x.length && line.x[end] <= Math.max(to, inside?.x.at(-1) ?? to)) end++;
    const join = (outer, inner) => outer && [...outer.slice(0, start), ...(inner ?? []), ...outer.slice(end)];
    const pick = (name) => join(line[name], inside?.[name]);
    return { ...line, x: pick("x"), y: pick("y"), low: pick("low"), high: pick("high") };
  });
  return [...joined, ...found.values()];
}
