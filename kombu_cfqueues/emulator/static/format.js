// Formats numbers, times and sizes for people.

const whole = new Intl.NumberFormat("en");

/** 1234567 → "1,234,567" */
export const number = (value) => whole.format(value);

/** 0 → "0", 3.4 → "3.4", 120.2 → "120" */
export const rate = (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : number(Math.round(value)));

/** 128000 → "128 KB" */
export function bytes(value) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["KB", 1e3]]) {
    if (value >= size) return `${(value / size).toFixed(value < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${value} B`;
}

/** Seconds → "5 s", "12 min", "3 h", "4 days" */
export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 90 * 60) return `${Math.round(s / 60)} min`;
  if (s < 36 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** Seconds → "0.4 ms", "12 ms", "1.5 s" */
export function took(seconds) {
  const ms = seconds * 1000;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${seconds.toFixed(1)} s`;
}

/** Seconds since the epoch → "14:03:59" */
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

/** Seconds since the epoch → "2026-11-23 14:03:59" */
export function moment(seconds) {
  const date = new Date(seconds * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(seconds)}`;
}

/** 1, "message" → "1 message"; 2 → "2 messages" */
export const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
