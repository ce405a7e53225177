// Numbers and times as people read them.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const DATE = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** "1.50" -> "1.5", "2.00e+10" -> "2e10"; what has no fraction stays. */
function trimmed(text) {
  const [mantissa, exponent] = text.split("e");
  const short = mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa;
  return exponent === undefined ? short : `${short}e${exponent.replace("+", "")}`;
}

/**
 * A number in about `digits` digits: 1.235k, 0.0123, 1e-5.
 * @param {number} value
 * @param {number} [digits]
 */
export function shortNumber(value, digits = 4) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e15 || size < 1e-4) return trimmed(value.toExponential(digits - 1));
  const [unit, letter] = UNITS.find(([least]) => size >= least) ?? [1, ""];
  return trimmed((value / unit).toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size / unit))))) + letter;
}

/**
 * A number beside an axis whose marks are `increment` apart: as many digits as tell one mark from the next.
 * @param {number} value
 * @param {number} increment
 */
export function markNumber(value, increment) {
  const size = Math.abs(value);
  if (size < increment / 1e6) return "0";
  if (size >= 1e15 || increment < 1e-5) {
    const digits = Math.floor(Math.log10(size) + 1e-9) - Math.floor(Math.log10(increment) + 1e-9);
    return trimmed(value.toExponential(Math.min(12, Math.max(0, digits))));
  }
  const [unit, letter] = UNITS.find(([least]) => size >= least) ?? [1, ""];
  return trimmed((value / unit).toFixed(Math.min(12, Math.max(0, Math.ceil(-Math.log10(increment / unit)))))) + letter;
}

const two = (number) => String(number).padStart(2, "0");

/** Local clock time; with the date where `date` asks for it. */
export function clockTime(seconds, { date = false, withSeconds = true } = {}) {
  const at = new Date(seconds * 1000);
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""}`;
  return date ? `${DATE.format(at)} ${clock}` : clock;
}

/** Marks of an axis of clock times: the date stands at the first mark of each day. */
export function clockMarks(times, increment) {
  let day = "";
  return times.map((seconds) => {
    const date = DATE.format(new Date(seconds * 1000));
    const clock = clockTime(seconds, { withSeconds: increment < 60 });
    const mark = date === day ? clock : `${increment >= 86400 ? "" : clock}\n${date}`.trimStart();
    day = date;
    return increment >= 86400 ? date : mark;
  });
}

/** Seconds since a start: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h. */
export function duration(seconds) {
  const sign = seconds < 0 ? "-" : "";
  const total = Math.abs(seconds);
  if (total < 60) return `${sign}${shortNumber(total, 3)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => total >= size);
  const [[big, bigName], [small, smallName]] = [parts[first], parts[first + 1]];
  const rest = Math.floor((total % big) / small);
  return `${sign}${Math.floor(total / big)} ${bigName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

/** A place on x in words, as the legend says it. */
export function place(x, kind) {
  if (kind === "time") return clockTime(x, { date: true });
  if (kind === "elapsed") return duration(x);
  return `${kind} ${Number.isInteger(x) ? WHOLE.format(x) : shortNumber(x, 6)}`;
}
