// The list of requests; each can be opened.

import { change, numbers, param } from "./address.js";
import { get, Refused, remove } from "./api.js";
import { copyButton } from "./copy.js";
import { attempt } from "./dialogs.js";
import { attribute, el, foreign, list, text } from "./dom.js";
import { bytes, clock, count, took } from "./format.js";

const LATEST = 150;
const MOST = 500;
const ORDERS = {
  newest: (a, b) => b.number - a.number,
  slowest: (a, b) => (b.seconds ?? Infinity) - (a.seconds ?? Infinity) || b.number - a.number,
  largest: (a, b) => b.bytes - a.bytes || b.number - a.number,
};
const at = (id) => document.getElementById(id);

let old = null; // the open request, if it is no longer among the latest ones

/** How many requests to fetch: more if only some of them are shown. */
export const wantedRequests = () => (narrowed() ? MOST : LATEST);

/** Show the latest requests that match, and the open one. */
export async function showRequests(requests) {
  const wanted = at("request-filter").value.trim().toLowerCase();
  const shown = requests.filter((request) => fits(request, wanted)).sort(ORDERS[at("request-sort").value]);
  await keepOpen(requests, shown);
  at("no-requests").hidden = shown.length > 0;
  text(at("no-requests"), narrowed() && requests.length ? `None of the latest ${count(requests.length, "request")} matches.` : "None yet. Requests appear here as they arrive.");
  list(at("request-rows"), shown, (request) => request.number, makeRequest, at("requests-title"));
}

/** Connect the controls above the list. */
export function prepareRequests(refresh) {
  const controls = { "failures-only": "failures", "request-filter": "find", "request-sort": "order" };
  at("failures-only").checked = param("failures") !== "";
  at("request-filter").value = param("find");
  at("request-sort").value = param("order") in ORDERS ? param("order") : "newest";
  for (const [id, name] of Object.entries(controls)) {
    at(id).addEventListener("input", async () => {
      const value = id === "failures-only" ? (at(id).checked ? "1" : "") : at(id).value;
      change({ [name]: id === "request-sort" && value === "newest" ? "" : value });
      await refresh();
    });
  }
  at("clear-requests").addEventListener("click", async () => {
    await attempt(() => remove("/requests"), "Requests cleared");
    change({ request: "" });
    await refresh();
  });
}

const narrowed = () => at("failures-only").checked || at("request-filter").value.trim() !== "";

function fits(request, wanted) {
  if (at("failures-only").checked && request.status !== null && request.status < 400) return false;
  const { method, route, path, queue, status, code, fault, agent, client } = request;
  return [method, route, path, queue, status, code && `code ${code}`, fault, agent, client].join(" ").toLowerCase().includes(wanted);
}

async function keepOpen(requests, shown) {
  const [number] = numbers("request");
  if (number === undefined || shown.some((request) => request.number === number)) {
    old = null;
    return;
  }
  const there = requests.find((request) => request.number === number);
  if (there !== undefined) old = there;
  else if (old?.number !== number) {
    try {
      old = await get(`/requests/${number}`);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 404) throw error;
      change({ request: "" }); // the log has dropped it
      return;
    }
  }
  shown.push(old);
}

function makeRequest(request) {
  const time = el("time", {}, clock(request.time));
  const status = el("span", { class: "status" });
  const what = foreign(el("span", { class: "what" }), `${request.method} ${request.route || request.path}`);
  const queue = el("span", { class: "queue" });
  const more = el("span", { class: "more" });
  const id = `request-${request.number}`;
  const body = el("div", { id, class: "body" });
  const open = el("button", { class: "request", "aria-controls": id, onclick: () => toggle() }, time, status, what, queue, more);
  const row = el("li", {}, open, body);
  let finished = null; // whether the details that are shown include the answer

  const show = async (updated) => {
    const isOpen = numbers("request").includes(request.number);
    attribute(open, "aria-expanded", String(isOpen));
    body.hidden = !isOpen;
    const done = updated.status !== null || updated.seconds !== null;
    if (!isOpen || finished === done) return;
    finished = done;
    const whole = await attempt(() => get(`/requests/${request.number}`));
    if (whole === null) finished = null;
    else body.replaceChildren(...describe(whole));
  };
  const toggle = () => {
    const isOpen = open.getAttribute("aria-expanded") === "true";
    change({ request: isOpen ? "" : String(request.number) }, { fresh: true });
  };
  row.update = (updated) => {
    text(status, updated.status ?? (updated.fault ? "none" : "…"));
    attribute(status, "class", `status s${updated.status === null ? "none" : Math.floor(updated.status / 100)}`);
    foreign(queue, updated.queue);
    const notes = [updated.seconds === null ? "waiting" : took(updated.seconds), bytes(updated.bytes)];
    if (updated.code !== null) notes.unshift(`code ${updated.code}`);
    if (updated.attempt) notes.push(`attempt ${updated.attempt + 1}`);
    if (updated.fault) notes.push(`fault: ${updated.fault.replaceAll("_", " ")}`);
    text(more, notes.join(" · "));
    show(updated);
  };
  return row;
}

/** Build the details of a request: where it came from, what it sent, what it got. */
function describe(request) {
  const address = request.path + (request.query ? `?${request.query}` : "");
  const parts = [
    el("div", { class: "copies" }, copyButton("Copy as curl", request.code.curl, "the request as curl"), request.code.sdk ? copyButton("Copy as Python (SDK)", request.code.sdk, "the request as Python") : null),
    facts({ Path: `${request.method} ${address}`, From: [request.client, request.token].filter(Boolean).join(", ") }),
    section("Headers", headers(request.headers)),
  ];
  if (request.bytes) parts.push(section("Body", pre(request.body)));
  const { answer } = request;
  if (answer === null) {
    parts.push(section("Answer", el("p", { class: "details" }, request.seconds === null ? "None yet." : "None: the connection was cut.")));
    return parts;
  }
  parts.push(section(`Answer ${request.status}`, headers(answer.headers)));
  if (answer.body === null) parts.push(el("p", { class: "details" }, `The log no longer keeps the ${bytes(answer.bytes)} of its body.`));
  else if (answer.bytes) parts.push(pre(answer.body));
  if (answer.cut) parts.push(el("p", { class: "details" }, `The log keeps only the beginning of its ${bytes(answer.bytes)}.`));
  return parts;
}

const facts = (values) => el("dl", { class: "facts-list" }, ...Object.entries(values).filter(([, value]) => value).map(([name, value]) => el("div", { class: "long" }, el("dt", {}, name), foreign(el("dd", {}), value))));
const headers = (values) => foreign(el("pre", { tabindex: "0" }), Object.entries(values).map(([name, value]) => `${name}: ${value}`).join("\n"));
const section = (title, content) => el("div", { class: "block" }, el("h3", {}, title), content);
const pre = ({ form, text: value }) => foreign(el("pre", { tabindex: "0" }), form === "binary" ? `Not text. In hexadecimal:\n${value}` : value);
