// The request limit: what is left of it, which token is blocked, until when, and which clients caused it.

import { post } from "./api.js";
import { attempt } from "./dialogs.js";
import { attribute, el, foreign, list, text } from "./dom.js";
import { clock, count, duration, number } from "./format.js";

const at = (id) => document.getElementById(id);

/** Show the allowance of the emulator's own token in the header. */
export function showAllowance(allowance) {
  const { limit, left, recent, blocked_for: blocked, resets_in: resets, cloudflare_limit: official } = allowance;
  if (limit === null) {
    text(at("allowance-label"), "Requests in 5 min");
    text(at("allowance-text"), `${number(recent)} of Cloudflare’s ${number(official)}`);
    fill(recent / official, 1 - recent / official);
  } else {
    text(at("allowance-label"), "Allowance left");
    const when = blocked !== null ? `, blocked for ${duration(blocked)}` : resets !== null ? `, resets in ${duration(resets)}` : "";
    text(at("allowance-text"), `${number(left)} of ${number(limit)}${when}`);
    const share = limit > 0 ? left / limit : 0;
    fill(share, share);
  }
}

/** Fill the meter; its colour shows when little is left. */
function fill(share, left) {
  attribute(at("allowance"), "value", Math.min(1, share).toFixed(3));
  attribute(at("allowance"), "class", left < 0.1 ? "low" : left < 0.3 ? "medium" : "");
}

/** Show a panel for each token that is blocked, or would be at Cloudflare. */
export function showBlocks(state, refresh) {
  const blocked = state.allowances.filter((one) => one.blocked_for !== null || (one.limit === null && one.recent > one.cloudflare_limit));
  list(at("blocks"), blocked, (one) => one.token, () => makeBlock(refresh), at("queues"));
}

function makeBlock(refresh) {
  const title = el("h2", {});
  const left = el("p", {});
  const numbers = el("p", {});
  const callers = el("tbody", {});
  const table = el(
    "table",
    { class: "callers" },
    el("caption", {}, "Who made the requests of the last 5 minutes, as far as the emulator can know"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Machine"), el("th", { scope: "col" }, "Client"), el("th", { scope: "col", class: "number" }, "Requests"))),
    callers,
  );
  const reset = el("button", { onclick: async () => { await attempt(() => post("/allowance/reset"), "Request count reset"); await refresh(); } }, "End the block");
  const panel = el("section", { class: "panel blocked", "aria-label": "Request limit" }, el("div", { class: "panel-head" }, title, reset), left, numbers, table);
  panel.update = (one) => {
    const is = one.blocked_for !== null;
    const name = one.token[0].toUpperCase() + one.token.slice(1);
    text(title, is ? `${name} is blocked by the request limit until ${clock(one.blocked_until)}` : `${name} is over Cloudflare’s request limit`);
    text(reset, is ? "End the block" : "Reset the count");
    text(left, is ? `${duration(one.blocked_for)} left. Until then the API refuses every request of this token that counts.` : "Cloudflare would refuse all requests of this token for 5 minutes. This emulator has no limit; start it with --rate-limit 1200 to see what your code does.");
    text(
      numbers,
      is
        ? `${count(one.used, "request")} in the window of ${duration(one.window)}, where ${number(one.limit)} are allowed; ${number(one.refused)} refused since ${clock(one.blocked_since)}.`
        : `${count(one.recent, "request")} in the last ${duration(one.cloudflare_window)}, where Cloudflare allows ${number(one.cloudflare_limit)}.`,
    );
    showCallers(callers, one);
  };
  return panel;
}

function showCallers(body, allowance) {
  list(body, allowance.callers, (caller) => `${caller.address} ${caller.agent}`, () => {
    const cells = [el("th", { scope: "row" }), el("td", {}), el("td", { class: "number" })];
    const row = el("tr", {}, ...cells);
    row.update = (caller) => {
      foreign(cells[0], caller.address || "unknown");
      foreign(cells[1], caller.agent || "no name");
      text(cells[2], number(caller.requests));
    };
    return row;
  });
}

/** Say in a sentence what the limit is and what was counted. */
export function limitOf(allowance) {
  const counted = `${count(allowance.recent, "request")} counted in the last ${duration(allowance.cloudflare_window)}; Cloudflare allows ${number(allowance.cloudflare_limit)}.`;
  if (allowance.limit === null) return `${counted} This emulator has no limit (rate_limit).`;
  return `${counted} This emulator allows ${number(allowance.limit)} in ${duration(allowance.window)}.`;
}

/** Describe the requests of one token, for the list of tokens. */
export const usageOf = (one) => `${one.token}: ${count(one.recent, "request")}${one.blocked_until === null ? "" : `, blocked until ${clock(one.blocked_until)}`}`;
