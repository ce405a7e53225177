// The field in which people say which ranks a chart shows, as 0,4-7.

const MOST = 64;

/** [first, last] of each part of the list; null where a part is none. */
function parts(text) {
  return text.split(",").filter((part) => part.trim()).map((part) => {
    const match = /^(\d{1,18})(?:\s*-\s*(\d{1,18}))?$/.exec(part.trim());
    return match && [Number(match[1]), Number(match[2] ?? match[1])];
  });
}

/** What is wrong with a list of ranks, in words; empty when the hub takes it. */
export function wrongRanks(text) {
  const found = parts(text);
  if (found.length === 0 || found.includes(null)) return "write ranks and ranges of them, as 0,4-7";
  if (found.some(([first, last]) => last < first)) return "write a range from the lower to the higher rank, as 4-7";
  const ranks = new Set();
  for (const [first, last] of found) {
    for (let rank = first; rank <= last && ranks.size <= MOST; rank++) ranks.add(rank);
  }
  return ranks.size > MOST ? `at most ${MOST} at a time; choose “mean, min to max” to see them all` : "";
}

/** Which ranks there are, where the list has others; `count` is 0 where the run has not said. */
export function beyond(text, count) {
  const absent = count > 0 && parts(text).some((part) => part && part[1] >= count);
  if (!absent) return "";
  return count === 1 ? "the only rank is 0" : `ranks are 0 to ${count - 1}`;
}
