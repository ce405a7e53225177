// What a chart knows of its metric: the hub's answers, and what is still to be asked for.

import { ask } from "./answers.js";
import { spliced } from "./lines.js";

const POINTS = 600;
/** Points asked for, for all lines together, where there are many. */
const POINTS_OF_MANY = 12_000;

/**
 * A model whose metrics are drawn.
 * @typedef {object} Source
 * @property {string} url of the model in the API
 * @property {string} name
 * @property {Map<string, number>} counts points of each metric, as last heard
 */

/** @typedef {{from: number, to: number}} Range */

/** The lines of one metric, of one or several models: all of x in few points, and the shown part of it in more. */
export class Data {
  /** The newest answer of each source, to "all" of x and to a "part" of it. */
  #answers = new Map();
  #busy = null;

  /**
   * @param {string} name of the metric
   * @param {Source[]} sources
   * @param {import("./choices.js").Choices} choices
   * @param {boolean} compared whether models are compared: by the time since each began
   */
  constructor(name, sources, choices, compared) {
    this.compared = compared;
    this.name = name;
    this.sources = sources;
    this.choices = choices;
  }

  /** What is asked for beside the range: another one is another chart. */
  get base() {
    const { show, ranks, x, older } = this.choices;
    return JSON.stringify({ show, ...(show === "ranks" && { ranks }), x, ...(older && { older }) });
  }

  /** What x is: "step", "epoch", "time", or "elapsed" since each model's first point. */
  get kind() {
    return this.compared && this.choices.x === "time" ? "elapsed" : this.choices.x;
  }

  /** The first and the last x of all there is, or null before an answer. */
  get range() {
    const found = [];
    for (const source of this.sources.keys()) {
      const [all, part] = ["all", "part"].map((which) => this.#answer(which, source));
      // While a part is shown only that is asked for again, and what is beyond it grows meanwhile.
      const newest = part && part.count > all.count ? part : all;
      if (newest?.data.range) found.push(newest.data.range.map((x) => x - this.#start(source)));
    }
    return found.length ? [Math.min(...found.map(([from]) => from)), Math.max(...found.map(([, to]) => to))] : null;
  }

  /** Values that were NaN or infinite. */
  get nonFinite() {
    const of = (source) => this.#answer("all", source)?.data.non_finite ?? 0;
    return [...this.sources.keys()].reduce((sum, source) => sum + of(source), 0);
  }

  /**
   * The lines, fine in the part that was asked for.
   * @param {boolean} zoomed
   * @returns {import("./lines.js").Line[]|null} null before each source has answered
   */
  lines(zoomed) {
    const lines = [];
    for (const [source, { counts }] of this.sources.entries()) {
      if (!counts.has(this.name)) continue;
      const all = this.#answer("all", source);
      if (!all) return null;
      const start = this.#start(source);
      const since = (xs) => (start ? xs.map((x) => x - start) : xs);
      const of = ({ data }) => data.lines.map((line) => ({ ...line, source, x: since(line.x) }));
      const part = zoomed ? this.#answer("part", source) : null;
      lines.push(...(part ? spliced(of(all), of(part), part.from, part.to) : of(all)));
    }
    return lines;
  }

  /**
   * Ask the hub for what is missing or has changed, one thing after the other; never twice at a time.
   * @param {() => {range: Range|null}|null} wanted what is shown now; null when nothing is
   * @param {() => void} changed called after each new answer
   */
  async refresh(wanted, changed) {
    const { base } = this;
    if (this.#busy?.base === base) return;
    this.#busy?.controller.abort();
    const busy = { base, controller: new AbortController() };
    this.#busy = busy;
    try {
      for (;;) {
        const now = wanted();
        const wish = now && this.base === base ? this.#wish(now.range) : null;
        if (!wish) return;
        if (await this.#fetch(wish, busy.controller.signal)) changed();
      }
    } finally {
      if (this.#busy === busy) this.#busy = null;
    }
  }

  #answer(part, source) {
    const answer = this.#answers.get(`${part} ${source}`);
    return answer?.base === this.base ? answer : null;
  }

  #start(source) {
    return this.kind === "elapsed" ? (this.#answer("all", source)?.data.range?.[0] ?? 0) : 0;
  }

  #wish(range) {
    for (const [source, { counts }] of this.sources.entries()) {
      const count = counts.get(this.name);
      if (count === undefined) continue;
      const all = this.#answer("all", source);
      if (!all || (!range && all.count !== count)) return { source, part: "all", count };
      if (!range || !all.data.range) continue;
      const part = this.#answer("part", source);
      if (part?.count === count && covers(part, range, this.range)) continue;
      const margin = (range.to - range.from) / 2;
      return { source, part: "part", count, from: range.from - margin, to: range.to + margin };
    }
    return null;
  }

  /** Returns whether the hub answered anything new. */
  async #fetch({ source, part, count, from, to }, signal) {
    const { base } = this;
    const query = new URLSearchParams({ name: this.name, ...JSON.parse(base), points: this.#points() });
    if (part === "part") {
      // As far again is asked for on both sides, so that there is something to move to.
      query.set("points", 2 * this.#points());
      query.set("from", from + this.#start(source));
      query.set("to", to + this.#start(source));
    }
    const url = `${this.sources[source].url}/chart?${query}`;
    const known = this.#answer(part, source);
    const answer = await ask(url, { etag: known?.url === url ? known.etag : null, signal });
    const { data, etag } = answer ?? known;
    this.#answers.set(`${part} ${source}`, { url, base, count, from, to, data, etag });
    return answer !== null;
  }

  #points() {
    if (this.choices.show !== "ranks") return POINTS;
    const ranks = this.choices.ranks.split(",").reduce((sum, part) => {
      const [first, last = first] = part.split("-").map(Number);
      return sum + Math.max(1, last - first + 1 || 1);
    }, 0);
    return Math.min(POINTS, Math.max(120, Math.round(POINTS_OF_MANY / ranks)));
  }
}

/** Whether an answer to a part of x is fine enough, and wide enough to move in, for what is shown now. */
function covers({ from, to }, range, [first, last]) {
  const span = range.to - range.from;
  const left = range.from - from >= 0.2 * span || from <= first;
  const right = to - range.to >= 0.2 * span || to >= last;
  return left && right && from <= range.from && to >= range.to && to - from <= 3.2 * span;
}
