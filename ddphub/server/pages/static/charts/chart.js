// One chart: draws what is to be seen of one metric, and says what is under the cursor.

import { Refused } from "./answers.js";
import { Data } from "./data.js";
import { Legend } from "./legend.js";
import { firstFrom, nearest } from "./lines.js";
import { byKeys } from "./navigation.js";
import { Plot } from "./plot.js";
import { strokes } from "./strokes.js";
import { unitOf } from "./units.js";

/** A zoom asks at most this often while it moves. */
const ASK_MS = 120;
const SAY_MS = 500;
/** Scrolling to and fro draws nothing anew. */
const KEPT_MS = 2000;

/** Draws one metric of one or several models into a <figure>. */
export class Chart {
  #view = null;
  #visible = false;
  #lines = [];
  #kind = "step";
  #asking = null;
  #frame = null;
  #refused = null;
  #cursor = null;
  #walked = null;
  #saying = null;
  #leaving = null;
  #moved = () => this.#follow();

  /**
   * @param {HTMLElement} figure as in _chart_list.html
   * @param {string} name of the metric
   * @param {object} page
   * @param {import("./data.js").Source[]} page.sources
   * @param {boolean} page.compared whether a line stands for a model
   * @param {import("./choices.js").Choices} page.choices
   * @param {import("./colours.js").Colours} page.colours
   * @param {import("./view.js").View} view
   */
  constructor(figure, name, { sources, compared, choices, colours }, view) {
    const part = (selector) => figure.querySelector(selector);
    figure.chart = this;
    this.figure = figure;
    this.choices = choices;
    this.colours = colours;
    this.compared = compared;
    this.models = sources.map((source) => source.name);
    this.content = new Data(name, sources, choices, compared);
    this.plotBox = part(".chart-plot");
    this.resetButton = part(".chart-reset");
    this.note = part(".chart-note");
    this.problem = part(".chart-problem");
    this.said = part(".chart-said");
    this.unit = unitOf(name);
    part(".chart-name").textContent = this.unit.name ? `${name} (${this.unit.name})` : name;
    this.legend = new Legend(part(".chart-legend"), this.unit);
    this.plot = new Plot(this.plotBox, this, colours, (x) => this.#pointed(x));
    this.resetButton.addEventListener("click", () => this.reset());
    byKeys(figure, this);
    this.view = view;
  }

  /** The columns that are drawn: x, then those of each line. */
  get data() {
    return this.plot.data;
  }

  get view() {
    return this.#view;
  }

  /** Zoom with the charts of this view. */
  set view(view) {
    this.#view?.removeEventListener("change", this.#moved);
    this.#view = view;
    view.addEventListener("change", this.#moved);
    this.#bound();
    this.#follow();
  }

  get visible() {
    return this.#visible;
  }

  /** Whether it is on the screen; what is not is not asked for, and its canvas is put away after a while. */
  set visible(visible) {
    this.#visible = visible;
    clearTimeout(this.#leaving);
    if (visible) this.change();
    else this.#leaving = setTimeout(() => this.plot.destroy(), KEPT_MS);
  }

  /** Draw again, with what was chosen or with other colours; ask for what that needs. */
  change() {
    this.#refused = null;
    this.#redraw();
    this.refresh();
  }

  resize() {
    this.plot.resize();
  }

  /** Ask the hub for what is missing, or has changed; false when it did not answer. */
  async refresh() {
    const { base } = this.content;
    if (!this.#visible || this.#refused === base || this.choices.wrong) return true;
    try {
      await this.content.refresh(
        () => (this.#visible ? this.#view : null),
        () => this.#answered(),
      );
      this.#complain(null);
      return true;
    } catch (error) {
      if (error.name === "AbortError") return true;
      // Asking again would not help: what was chosen is wrong.
      if (error instanceof Refused && error.status === 422) this.#refused = base;
      this.#complain(this.#refused === base ? error.message : "The hub did not answer; trying again.");
      return this.#refused === base;
    }
  }

  #answered() {
    this.#bound();
    this.#redraw();
  }

  #bound() {
    const { range } = this.content;
    if (range) this.#view.bound(this, range);
  }

  // How it is navigated: see navigation.js.

  shown() {
    const all = this.content.range;
    if (!all) return null;
    const { from, to } = this.#view.range ?? { from: all[0], to: all[1] };
    return to > from ? [from, to] : [from - 1, from + 1];
  }

  show(from, to) {
    this.#view.show(from, to);
  }

  reset() {
    this.#view.reset();
  }

  walk(by) {
    const line = this.#lines.filter((one) => !one.older).at(-1);
    const shown = this.shown();
    if (!line || !shown) return;
    const [from, to] = shown;
    const at = this.#walked === null ? nearest(line.x, by > 0 ? from : to) : nearest(line.x, this.#walked) + by;
    const x = line.x[Math.min(Math.max(at, 0), line.x.length - 1)];
    if (x < from || x > to) this.show(x - (to - from) / 2, x + (to - from) / 2);
    this.plot.point(x);
    this.#walked = x;
    // Who listens hears where a walk ends, not each step of it.
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => { this.said.textContent = this.#write(x); }, SAY_MS);
  }

  #follow() {
    this.resetButton.hidden = this.#view.range === null;
    if (!this.#visible) return;
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      if (this.#view.range === null) this.#redraw();
      else this.#move();
    });
    this.#asking ??= setTimeout(() => {
      this.#asking = null;
      this.refresh();
    }, ASK_MS);
  }

  #move() {
    const shown = this.shown();
    if (!shown || !this.#visible) return;
    this.plot.move(shown);
    this.#count(shown);
  }

  // What it shows.

  #redraw() {
    if (!this.#visible) return;
    const { choices, colours, compared, content, models, unit } = this;
    const lines = content.lines(this.#view.range !== null);
    // What was drawn stays until the hub has answered.
    if (lines === null) return;
    this.#kind = content.kind;
    this.#lines = strokes(lines, { models, compared, choices, colours });
    const shown = this.shown();
    if (lines.length && shown) {
      const many = compared || choices.show === "ranks";
      const group = choices.together ? "ddphub" : null;
      this.plot.draw({ lines: this.#lines, kind: this.#kind, log: choices.log, unit, many, compared, group }, shown);
    } else {
      this.plot.destroy();
    }
    this.figure.dataset.state = lines.length ? "drawn" : "empty";
    this.#write(this.#cursor);
    this.#notes();
    this.#count(shown);
  }

  #notes() {
    const notes = [];
    const lost = this.content.nonFinite;
    if (!this.#lines.length) notes.push("nothing to show with these choices");
    if (lost) notes.push(`${lost} ${lost === 1 ? "value was" : "values were"} not finite`);
    if (this.choices.log && this.#lines.some(({ y }) => y.some((value) => value !== null && value <= 0))) {
      notes.push("values of 0 and below are not on a log scale");
    }
    this.note.textContent = notes.join("; ");
  }

  #count(shown) {
    const [from, to] = shown ?? [0, 0];
    const within = ({ x }) => firstFrom(x, to) + (x[firstFrom(x, to)] === to ? 1 : 0) - firstFrom(x, from);
    this.figure.dataset.points = this.#lines.reduce((sum, line) => sum + within(line), 0);
  }

  #pointed(x) {
    this.#cursor = x;
    if (x === null) this.#walked = null;
    this.#write(x);
  }

  #write(x) {
    return this.legend.write(this.#lines, x, this.#kind);
  }

  #complain(message) {
    this.problem.hidden = message === null;
    this.problem.textContent = message ?? "";
    const { dataset } = this.figure;
    if (message !== null) dataset.state = "problem";
    else if (dataset.state === "problem") dataset.state = this.#lines.length ? "drawn" : "empty";
  }
}
