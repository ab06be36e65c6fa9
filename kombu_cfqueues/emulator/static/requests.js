// The list of requests.

import { remove } from "./api.js";
import { attempt } from "./dialogs.js";
import { attribute, el, list, text } from "./dom.js";
import { bytes, clock, took } from "./format.js";

const at = (id) => document.getElementById(id);

/** Show the latest requests, the newest first. */
export function showRequests(requests) {
  const failures = at("failures-only").checked;
  const shown = requests.filter((request) => !failures || request.status === null || request.status >= 400).reverse();
  at("no-requests").hidden = shown.length > 0;
  text(at("no-requests"), failures && requests.length ? "No failures among the latest requests." : "None yet. Requests appear here as they arrive.");
  list(at("request-rows"), shown, (request) => request.number, makeRequest);
}

/** Connect the controls above the list. */
export function prepareRequests(refresh) {
  at("failures-only").addEventListener("change", refresh);
  at("clear-requests").addEventListener("click", async () => {
    await attempt(() => remove("/requests"), "Requests cleared");
    await refresh();
  });
}

function makeRequest(request) {
  const time = el("time", {}, clock(request.time));
  const status = el("span", { class: "status" });
  const what = el("span", { class: "what" }, el("b", {}, request.method), " ", request.route || request.path);
  const queue = el("span", { class: "queue" });
  const more = el("span", { class: "more" });
  const row = el("li", { title: request.path }, time, status, what, queue, more);
  row.update = (updated) => {
    text(status, updated.status ?? (updated.fault ? "none" : "…"));
    attribute(status, "class", `status s${updated.status === null ? "none" : Math.floor(updated.status / 100)}`);
    text(queue, updated.queue);
    const notes = [updated.seconds === null ? "waiting" : took(updated.seconds), bytes(updated.bytes)];
    if (updated.code !== null) notes.unshift(`code ${updated.code}`);
    if (updated.attempt) notes.push(`attempt ${updated.attempt + 1}`);
    if (updated.fault) notes.push(`fault: ${updated.fault.replaceAll("_", " ")}`);
    text(more, notes.join(" · "));
  };
  return row;
}
