// Which part of x is shown: one view for all charts of a page, or one for each.

/** How close a zoom may come, on each kind of x. */
const LEAST_SPAN = { step: 4, epoch: 2, time: 1, elapsed: 1 };

/** A range of x, or everything; says "change" when it is another one. */
export class View extends EventTarget {
  /** @type {{from: number, to: number}|null} null for everything */
  range = null;
  #bounds = new Map();
  #kind = "step";

  /** @param {string} kind what x is; another kind shows everything again */
  set kind(kind) {
    if (kind === this.#kind) return;
    this.#kind = kind;
    this.#bounds.clear();
    this.#set(null);
  }

  /**
   * A chart says what x its data has.
   * @param {object} chart
   * @param {[number, number]} bounds
   */
  bound(chart, bounds) {
    this.#bounds.set(chart, bounds);
  }

  /** From the first to the last x of all charts here, or null before there is any. */
  get bounds() {
    const all = [...this.#bounds.values()];
    return all.length ? [Math.min(...all.map(([from]) => from)), Math.max(...all.map(([, to]) => to))] : null;
  }

  /** Show from `from` to `to`, as far as there is anything. */
  show(from, to) {
    const bounds = this.bounds;
    if (!bounds || !(to > from)) return;
    const span = Math.max(to - from, LEAST_SPAN[this.#kind]);
    const [first, last] = bounds;
    if (span >= last - first) {
      this.#set(null);
      return;
    }
    const middle = (from + to) / 2;
    const start = Math.min(Math.max(middle - span / 2, first), last - span);
    this.#set({ from: start, to: start + span });
  }

  /** Take a range as it is, before the charts have said what they have. */
  restore(range) {
    this.#set(range);
  }

  reset() {
    this.#set(null);
  }

  #set(range) {
    if (range?.from === this.range?.from && range?.to === this.range?.to) return;
    this.range = range;
    this.dispatchEvent(new Event("change"));
  }
}
