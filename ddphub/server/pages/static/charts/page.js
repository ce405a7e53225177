// The charts of a page: one for each metric, in groups; those on the screen are kept true.

import { ask, Refused } from "./answers.js";
import { Chart } from "./chart.js";
import { Choices } from "./choices.js";
import { Colours } from "./colours.js";
import { beyond } from "./ranks.js";
import { View } from "./view.js";

const PAGE = 1000;
const SLOWEST_S = 30;
/** A run that says nothing for so long is asked less often. */
const QUIET_S = 60;
const QUIET_EVERY_S = 10;
const FOLDED = "charts-folded";

/** The charts of one section of the page; `section` has the attributes that _charts.html describes. */
class ChartsPage {
  #charts = new Map();
  #groups = new Map();
  #view = new View();
  #lists = new Map();
  #timer = null;
  #asking = false;
  #failures = 0;
  #grew = performance.now();

  /** @param {HTMLElement} section */
  constructor(section) {
    this.section = section;
    this.sources = JSON.parse(section.dataset.models).map(({ id, name }) => ({
      url: `/v1/models/${encodeURIComponent(id)}`,
      name,
      counts: new Map(),
    }));
    this.compared = section.dataset.compared !== undefined;
    this.every = Number(section.dataset.every);
    if (section.dataset.ended !== undefined) this.#grew -= 1000 * QUIET_S;
    this.choices = new Choices(section.querySelector(".chart-choices"));
    this.colours = new Colours(section);
    this.list = section.querySelector(".chart-groups");
    this.template = section.querySelector("template").content.firstElementChild;
    this.seen = new IntersectionObserver((entries) => this.#saw(entries), { rootMargin: "150px" });
    this.sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) target.closest("figure").chart.resize();
    });
  }

  start() {
    this.#view.kind = this.choices.x;
    if (this.choices.together) this.#view.restore(this.choices.range);
    this.#view.addEventListener("change", () => this.#zoomed());
    this.choices.addEventListener("change", () => this.#chosen());
    this.colours.addEventListener("change", () => this.#each((chart) => chart.change()));
    document.addEventListener("visibilitychange", () => this.#tick());
    this.section.querySelector(".chart-reset-all").addEventListener("click", () => this.#view.reset());
    this.#showFields();
    this.#zoomed();
    this.#tick();
  }

  #each(act) {
    for (const chart of this.#charts.values()) act(chart);
  }

  // Being told.

  async #tick() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#asking) return;
    this.#asking = true;
    try {
      await Promise.all(this.sources.map((source) => this.#ask(source)));
      this.#say("");
      this.#arrange();
      // Those on the screen alone ask, and of those the ones whose metric has new points.
      const answered = await Promise.all([...this.#charts.values()].map((chart) => chart.refresh()));
      this.#failures = answered.every(Boolean) ? 0 : this.#failures + 1;
    } catch (error) {
      this.#failures += 1;
      this.#failed(error);
    } finally {
      this.#asking = false;
    }
    const quiet = performance.now() - this.#grew > 1000 * QUIET_S;
    let every = quiet ? Math.max(this.every, QUIET_EVERY_S) : this.every;
    if (this.#failures) every = Math.min(SLOWEST_S, 2 ** this.#failures);
    // Not all pages of a team at the same moment.
    this.#timer = setTimeout(() => this.#tick(), 1000 * every * (0.9 + 0.2 * Math.random()));
  }

  /** How many points each metric of a model has. */
  async #ask(source) {
    for (let after = null; ; ) {
      const url = `${source.url}/series?${new URLSearchParams({ limit: PAGE, ...(after !== null && { after }) })}`;
      const known = this.#lists.get(url);
      const answer = (await ask(url, { etag: known?.etag })) ?? known;
      if (answer !== known) {
        this.#lists.set(url, answer);
        for (const { name, count } of answer.data.results) {
          if (source.counts.get(name) === count) continue;
          if (this.#charts.size) this.#grew = performance.now();
          source.counts.set(name, count);
        }
      }
      after = answer.data.next;
      if (after === null) return;
    }
  }

  #failed(error) {
    if (error instanceof Refused && error.status === 401) {
      location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    } else if (error instanceof Refused && error.status === 404) {
      this.#say("A model shown here was deleted.");
    } else {
      this.#say("The hub did not answer; trying again.");
    }
  }

  #say(text) {
    const status = this.section.querySelector(".chart-status");
    if (status.textContent !== text) status.textContent = text;
    this.section.dataset.state = text ? "problem" : "live";
  }

  // What was chosen.

  #showFields() {
    const { show, smoothing } = this.choices;
    const ranks = this.section.querySelector(".chart-ranks");
    if (ranks) this.#showRanks(ranks, show === "ranks");
    this.section.querySelector(".chart-smoothing").value = smoothing ? smoothing.toFixed(2) : "off";
  }

  #showRanks(field, shown) {
    const { ranks, wrong } = this.choices;
    const says = this.section.querySelector(".chart-ranks-wrong");
    field.hidden = !shown;
    field.querySelector("input").setAttribute("aria-invalid", String(wrong !== ""));
    says.textContent = shown ? wrong || beyond(ranks, Number(this.section.dataset.ranks)) : "";
  }

  #chosen() {
    this.#showFields();
    this.#view.kind = this.choices.x;
    this.#each((chart) => {
      if (this.choices.together) chart.view = this.#view;
      else if (chart.view === this.#view) chart.view = new View();
      chart.view.kind = this.choices.x;
      chart.change();
    });
    this.#arrange();
  }

  #zoomed() {
    this.section.querySelector(".chart-reset-all").disabled = this.#view.range === null;
    clearTimeout(this.writing);
    // Browsers refuse an address that changes too often.
    this.writing = setTimeout(() => { this.choices.range = this.#view.range; }, 300);
  }

  // Which charts there are.

  #arrange() {
    const having = new Map();
    for (const { counts } of this.sources) {
      for (const name of counts.keys()) having.set(name, (having.get(name) ?? 0) + 1);
    }
    for (const name of having.keys()) if (!this.#charts.has(name)) this.#add(name);
    const wanted = this.choices.every ? 1 : this.sources.length;
    let shown = 0;
    for (const [name, chart] of this.#charts) {
      const hidden = having.get(name) < wanted || !name.toLowerCase().includes(this.choices.search);
      if (chart.figure.hidden !== hidden) chart.figure.hidden = hidden;
      if (!hidden) shown += 1;
    }
    for (const { details, grid, count } of this.#groups.values()) {
      const left = [...grid.children].filter((figure) => !figure.hidden).length;
      details.hidden = left === 0;
      const words = `(${left} chart${left === 1 ? "" : "s"})`;
      if (count.textContent !== words) count.textContent = words;
    }
    this.section.querySelector(".chart-none").hidden = this.#charts.size > 0;
    const unmatched = this.section.querySelector(".chart-unmatched");
    unmatched.hidden = this.#charts.size === 0 || shown > 0;
  }

  #add(name) {
    const figure = this.template.cloneNode(true);
    figure.dataset.name = name;
    figure.setAttribute("aria-label", `Chart of ${name}`);
    const group = this.#group(name.includes("/") ? name.slice(0, name.indexOf("/")) : "");
    insertSorted(group.grid, figure, (other) => byName(name, other.dataset.name));
    const view = this.choices.together ? this.#view : new View();
    view.kind = this.choices.x;
    const chart = new Chart(figure, name, this, view);
    this.#charts.set(name, chart);
    this.sizes.observe(chart.plotBox);
    this.seen.observe(figure);
  }

  #group(prefix) {
    const known = this.#groups.get(prefix);
    if (known) return known;
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    const grid = document.createElement("div");
    const count = document.createElement("span");
    details.className = "chart-group";
    grid.className = "chart-grid";
    count.className = "muted";
    summary.append(`${prefix || "general"} `, count);
    details.append(summary, grid);
    details.dataset.prefix = prefix;
    const folded = foldings();
    details.open = !(folded[prefix] ?? prefix === "system");
    details.addEventListener("toggle", () => remember(prefix, !details.open));
    insertSorted(this.list, details, (other) => byGroup(prefix, other.dataset.prefix));
    const group = { details, grid, count };
    this.#groups.set(prefix, group);
    return group;
  }

  #saw(entries) {
    for (const { target, isIntersecting } of entries) {
      if (target.chart.visible !== isIntersecting) target.chart.visible = isIntersecting;
    }
  }
}

const ORDER = new Intl.Collator("en", { numeric: true });
const byName = (a, b) => ORDER.compare(a, b) || (a < b ? -1 : 1);

/** Alphabetically, what is about the machines at the end. */
function byGroup(a, b) {
  return Number(a === "system") - Number(b === "system") || byName(a, b);
}

function insertSorted(parent, element, compare) {
  const next = [...parent.children].find((other) => compare(other) < 0) ?? null;
  parent.insertBefore(element, next);
}

function foldings() {
  try {
    return JSON.parse(localStorage.getItem(FOLDED)) ?? {};
  } catch {
    return {};
  }
}

function remember(prefix, folded) {
  try {
    localStorage.setItem(FOLDED, JSON.stringify({ ...foldings(), [prefix]: folded }));
  } catch {
    // Storage may be switched off: then the choice lasts as long as the page.
  }
}

for (const section of document.querySelectorAll("[data-charts]")) {
  new ChartsPage(section).start();
}
