// An element with data-follow shows its end, as a terminal does, until its reader scrolls up; then it waits.

const NEAR = 24;

function box(root) {
  return root.querySelector("[data-follow]");
}

function atEnd(element) {
  return element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
}

/** Whether someone reads further up, so that nothing may move. */
export function isHeld(root) {
  const element = box(root);
  return element !== null && element.dataset.started !== undefined && !atEnd(element);
}

/** Call before a change; returns what to call after it. */
export function follow(root) {
  return () => start(root);
}

function start(root) {
  const element = box(root);
  if (!element) return;
  element.dataset.started = "";
  element.scrollTop = element.scrollHeight;
}

document.addEventListener(
  "scroll",
  (event) => {
    const element = event.target;
    if (!(element instanceof Element) || !element.hasAttribute("data-follow")) return;
    const button = document.querySelector(`[data-to-end="${element.id}"]`);
    if (button) button.hidden = atEnd(element);
  },
  { capture: true, passive: true },
);

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-to-end]");
  if (!button) return;
  const element = document.getElementById(button.dataset.toEnd);
  element.scrollTop = element.scrollHeight;
  button.hidden = true;
  element.focus({ preventScroll: true });
  const fragment = element.closest("[data-fragment]");
  document.dispatchEvent(new CustomEvent("refresh", { detail: fragment.id }));
});

start(document);
