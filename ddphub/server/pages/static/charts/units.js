// Units of what ddphub itself measures: system/host.py and system/gpu.py say what each figure is.

import { markNumber, shortNumber } from "./numbers.js";

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/**
 * How the values of a metric are written.
 * @typedef {object} Unit
 * @property {string} name beside the metric's name; empty where each number has its own, or there is none
 * @property {(value: number) => string} write
 * @property {(value: number, increment: number) => string} mark beside an axis whose marks are `increment` apart
 * @property {boolean} binary whether its round numbers are powers of two
 */

/** @returns {Unit} */
function named(name) {
  const write = (value) => `${shortNumber(value)} ${name}`;
  return { name, write, mark: (value, increment) => `${markNumber(value, increment)} ${name}`, binary: false };
}

/** 6.1 GiB: three digits, or as many as tell marks `increment` apart. */
function bytes(value, increment = 0) {
  const size = Math.max(Math.abs(value), increment);
  if (size === 0) return "0 B";
  const power = Math.min(BYTES.length - 1, Math.max(0, Math.floor(Math.log2(size) / 10)));
  const unit = 1024 ** power;
  const finest = power === 0 ? 0 : 4;
  const digits = increment ? Math.ceil(Math.log2(unit / increment)) : 2 - Math.floor(Math.log10(size / unit));
  return `${Number((value / unit).toFixed(Math.min(finest, Math.max(0, digits))))} ${BYTES[power]}`;
}

const PLAIN = { name: "", write: (value) => shortNumber(value), mark: markNumber, binary: false };
const PERCENT = named("%");
const SIZE = { name: "", write: (value) => bytes(value), mark: bytes, binary: true };
const UNITS = new Map([
  ["system/cpu", PERCENT],
  ["system/host_memory", PERCENT],
  ["system/disk", PERCENT],
  ["system/gpu", PERCENT],
  ["system/memory", SIZE],
  ["system/gpu_memory", SIZE],
  ["system/gpu_temperature", named("°C")],
  ["system/gpu_power", named("W")],
]);

/**
 * @param {string} name of a metric
 * @returns {Unit}
 */
export function unitOf(name) {
  return UNITS.get(name) ?? PLAIN;
}
