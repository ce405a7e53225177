// Times as people say them. The server sends seconds since the epoch, which do not change while they pass, so a
// fragment stays the same until something happened.

const STEPS = [
  [60, 1, "s"],
  [3600, 60, "min"],
  [86400, 3600, "h"],
  [Infinity, 86400, "d"],
];

// The hub's clock counts: this computer's may be wrong.
const ahead = Number(document.documentElement.dataset.now) - Date.now() / 1000;

/** Seconds since the epoch by the hub's clock. */
export function hubNow() {
  return Date.now() / 1000 + ahead;
}

/** Seconds as one or two units: "12 s", "3 min", "2 h 5 min". */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const index = STEPS.findIndex(([limit]) => whole < limit);
  const [, size, unit] = STEPS[index];
  const text = `${Math.floor(whole / size)} ${unit}`;
  if (index < 2) return text;
  const [, smaller, smallerUnit] = STEPS[index - 1];
  const rest = Math.floor((whole % size) / smaller);
  return rest ? `${text} ${rest} ${smallerUnit}` : text;
}

/** Write every time below `root` as it is now. */
export function showTimes(root = document) {
  const now = hubNow();
  for (const element of root.querySelectorAll("[data-time]")) {
    const time = Number(element.dataset.time);
    const passed = now - time;
    const text = element.dataset.as === "since" ? duration(passed) : passed < 1 ? "now" : `${duration(passed)} ago`;
    if (element.textContent !== text) element.textContent = text;
    if (!element.title) element.title = new Date(time * 1000).toLocaleString();
  }
}

setInterval(() => {
  if (!document.hidden) showTimes();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) showTimes();
});
