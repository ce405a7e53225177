// Keeps a page true without reloading it.
//
// An element with data-fragment="/path" is asked for again while it can be seen, and what came is morphed into it: what
// has focus, is open, scrolled or being typed stays so. The page's query belongs to every fragment's address, so that
// what is shown is always a link. The hub answers 304 when nothing has changed, and says with `poll-after` when to ask
// next.

import { follow, isHeld } from "./following.js";
import { showTimes } from "./times.js";
import "./actions.js";

const FIRST_S = 2;
const SLOWEST_S = 30;
const PATIENCE_S = 15;
const sign = document.getElementById("unreachable");

/** The page's query, without what only its charts are about (charts/choices.js): a zoom changes no other part. */
function query() {
  const names = [...new URLSearchParams(location.search)].filter(([name]) => !name.startsWith("chart-"));
  return names.length ? `?${new URLSearchParams(names)}` : "";
}

/** One part of the page that the hub renders. */
class Fragment {
  constructor(element) {
    this.element = element;
    this.seen = false;
    this.used = false;
    // The page came with it.
    this.etag = element.dataset.etag ?? null;
    this.url = this.etag ? element.dataset.fragment + query() : null;
    this.timer = null;
    this.failures = 0;
    this.request = null;
    this.wait = Number(element.dataset.every ?? FIRST_S);
  }

  /** Ask when it is time, or now. */
  schedule(seconds) {
    clearTimeout(this.timer);
    if (document.hidden || !this.seen) return;
    // Not all pages of a team at the same moment.
    this.timer = setTimeout(() => this.refresh(), seconds * 1000 * (0.9 + 0.2 * Math.random()));
  }

  async refresh(asked = false) {
    clearTimeout(this.timer);
    this.request?.abort();
    if (!asked && isHeld(this.element)) {
      this.schedule(this.wait);
      return;
    }
    const request = new AbortController();
    this.request = request;
    this.used = true;
    const url = this.element.dataset.fragment + query();
    if (url !== this.url) this.etag = null;
    const patience = setTimeout(() => request.abort(), PATIENCE_S * 1000);
    try {
      const headers = this.etag ? { "if-none-match": this.etag } : {};
      const answer = await fetch(url, { headers, cache: "no-store", signal: request.signal });
      if (answer.status === 401) {
        signIn();
        return;
      }
      if (answer.status === 404) {
        location.reload();
        return;
      }
      if (answer.status !== 200 && answer.status !== 304) throw new Error(`the hub answered ${answer.status}`);
      const html = answer.status === 200 ? await answer.text() : null;
      if (this.request !== request) return;
      this.wait = Number(answer.headers.get("poll-after") ?? this.wait);
      if (html !== null) this.show(html);
      this.url = url;
      this.etag = answer.headers.get("etag");
      this.failures = 0;
    } catch {
      if (this.request !== request) return;
      this.failures += 1;
    } finally {
      clearTimeout(patience);
    }
    sign.hidden = !fragments.some((one) => one.failures > 0 && one.seen);
    this.schedule(this.failures ? Math.min(SLOWEST_S, 2 ** this.failures) : this.wait);
  }

  show(html) {
    const stay = follow(this.element);
    Idiomorph.morph(this.element, html, {
      morphStyle: "innerHTML",
      callbacks: { beforeAttributeUpdated: keepsChosen, beforeNodeMorphed: keepsOwn },
    });
    showTimes(this.element);
    stay();
    this.element.dispatchEvent(new CustomEvent("fragment", { bubbles: true }));
  }
}

// People open, close and choose these, not the hub.
function keepsChosen(name, node) {
  return !(name === "open" || (name === "checked" && node.localName === "input"));
}

// What a script draws by itself, a form that someone has begun to fill in, a field that someone is in.
function keepsOwn(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return true;
  const isField = node.matches("input, select, textarea") && node === document.activeElement;
  return !(isField || node.hasAttribute("data-keep") || node.hasAttribute("data-typed"));
}

function signIn() {
  location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
}

const fragments = [...document.querySelectorAll("[data-fragment]")].map((element) => new Fragment(element));

/** Ask for the named fragments now, or for all that can be seen. */
export function refresh(id) {
  for (const one of fragments) {
    if (id ? one.element.id === id : one.seen) one.refresh(id !== undefined);
  }
}

const watch = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const fragment = fragments.find((one) => one.element === entry.target);
      const came = entry.isIntersecting && !fragment.seen;
      fragment.seen = entry.isIntersecting;
      if (came) fragment.schedule(fragment.etag && !fragment.used ? fragment.wait : 0);
    }
  },
  { rootMargin: "200px" },
);
for (const one of fragments) watch.observe(one.element);

document.addEventListener("visibilitychange", () => {
  for (const one of fragments) one.schedule(0);
});
document.addEventListener("refresh", (event) => refresh(event.detail ?? undefined));
showTimes();
// Tests wait for it: from here on the page works.
document.documentElement.dataset.live = "yes";
