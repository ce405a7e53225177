// What the toolbar says, kept in the page's address so that what is shown is always a link.

import { wrongRanks } from "./ranks.js";

const PREFIX = "chart-";
const TYPING_MS = 400;

/** The fields of one form; says "change" when one of them has another value. */
export class Choices extends EventTarget {
  #form;
  #defaults = new Map();
  #values = new Map();
  #timer = null;

  /** @param {HTMLFormElement} form */
  constructor(form) {
    super();
    this.#form = form;
    const query = new URLSearchParams(location.search);
    for (const field of form.elements) {
      if (!field.name) continue;
      this.#defaults.set(field.name, this.#value(field));
      const given = query.get(PREFIX + field.name);
      if (given === null) continue;
      if (field.type === "checkbox") field.checked = given === "1";
      else if (!field.options || [...field.options].some(({ value }) => value === given)) field.value = given;
    }
    this.#read();
    form.addEventListener("submit", (event) => event.preventDefault());
    const follow = (event) => {
      clearTimeout(this.#timer);
      const typed = event.type === "input" && event.target.matches("[type=search], [type=text]");
      this.#timer = setTimeout(() => this.#changed(), typed ? TYPING_MS : 0);
    };
    form.addEventListener("input", follow);
    form.addEventListener("change", follow);
  }

  /** What counts is what was said last, not what is being typed. */
  #read() {
    for (const name of this.#defaults.keys()) this.#values.set(name, this.#value(this.#form.elements.namedItem(name)));
  }

  #value(field) {
    return field.type === "checkbox" ? (field.checked ? "1" : "0") : field.value.trim();
  }

  #get(name) {
    return this.#values.get(name) ?? "";
  }

  /** "rank0", "band" or "ranks" */
  get show() {
    return this.#get("show");
  }

  /** As the user wrote them: "0,4-7". */
  get ranks() {
    return this.#get("ranks");
  }

  /** What is wrong with the chosen ranks, in words; empty when nothing is, or none are chosen. */
  get wrong() {
    return this.show === "ranks" ? wrongRanks(this.ranks) : "";
  }

  /** "step", "epoch" or "time" */
  get x() {
    return this.#get("x");
  }

  /** 0 for none, to below 1 */
  get smoothing() {
    return Math.min(0.999, Math.max(0, Number(this.#get("smooth")) || 0));
  }

  get log() {
    return this.#get("log") === "1";
  }

  get older() {
    return this.#get("older") === "1";
  }

  /** Whether a zoom in one chart is one in all. */
  get together() {
    return this.#get("together") !== "0";
  }

  /** Whether metrics that only some of the models have are shown. */
  get every() {
    return this.#get("every") === "1";
  }

  get search() {
    return this.#get("find").toLowerCase();
  }

  /** The range that the page was opened with, or null. */
  get range() {
    const query = new URLSearchParams(location.search);
    const [from, to] = ["from", "to"].map((name) => Number.parseFloat(query.get(PREFIX + name)));
    return to > from ? { from, to } : null;
  }

  /** @param {{from: number, to: number}|null} range */
  set range(range) {
    this.#write((query) => {
      for (const name of ["from", "to"]) {
        if (range) query.set(PREFIX + name, String(Number(range[name].toPrecision(12))));
        else query.delete(PREFIX + name);
      }
    });
  }

  #changed() {
    this.#read();
    this.#write((query) => {
      for (const [name, usual] of this.#defaults) {
        const value = this.#get(name);
        if (value === usual) query.delete(PREFIX + name);
        else query.set(PREFIX + name, value);
      }
    });
    this.dispatchEvent(new Event("change"));
  }

  #write(change) {
    const query = new URLSearchParams(location.search);
    change(query);
    const text = query.toString();
    history.replaceState(history.state, "", location.pathname + (text ? `?${text}` : "") + location.hash);
  }
}
