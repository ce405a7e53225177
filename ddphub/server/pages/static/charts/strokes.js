// How each line looks: its name, its colour, and what tells one attempt from another.

import { faded } from "./colours.js";
import { smoothed } from "./lines.js";

/**
 * A line with its looks.
 * @typedef {import("./lines.js").Line & {
 *   name: string, label: string, colour: string, faint: string, fill: string, dash: number[]|undefined,
 *   smooth: (number|null)[]|null,
 * }} DrawnLine
 */

/**
 * @param {import("./lines.js").Line[]} lines
 * @param {object} options
 * @param {string[]} options.models names of the models, one or more
 * @param {boolean} options.compared whether a line stands for a model
 * @param {import("./choices.js").Choices} options.choices
 * @param {import("./colours.js").Colours} options.colours
 * @returns {DrawnLine[]}
 */
export function strokes(lines, { models, compared, choices, colours }) {
  const ranks = unique(lines.map((line) => line.rank));
  // The hub sends the oldest attempt's lines first.
  const newest = models.map((_, source) => lines.findLast((line) => line.source === source && !line.older)?.attempt);
  const restarted = !compared && unique(lines.map((line) => line.attempt)).length > 1;
  return lines.map((line) => {
    const colour = compared
      ? colours.line(line.source, models.length)
      : colours.line(ranks.indexOf(line.rank), ranks.length);
    const of = choices.show === "band" ? "mean" : choices.show === "ranks" ? `rank ${line.rank}` : "";
    const label = compared ? models[line.source] : of;
    const attempt = restarted || line.older ? `attempt ${line.attempt}${line.older ? " (older)" : ""}` : "";
    const opacity = line.older ? 0.5 : line.attempt !== newest[line.source] ? 0.7 : 1;
    return {
      ...line,
      low: compared ? null : line.low,
      high: compared ? null : line.high,
      label,
      name: [label, attempt].filter(Boolean).join(", "),
      colour: faded(colour, opacity),
      faint: faded(colour, 0.25 * opacity),
      fill: faded(colour, 0.18 * opacity),
      dash: line.older ? [4, 4] : undefined,
      smooth: choices.smoothing ? smoothed(line.y, choices.smoothing) : null,
    };
  });
}

function unique(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}
