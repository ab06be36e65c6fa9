// The table of queues, or instructions if there are none.

import { change, ofQueue, param, select } from "./address.js";
import { post } from "./api.js";
import { copyBlock } from "./copy.js";
import { ask, field, toast } from "./dialogs.js";
import { attribute, el, list, sparkline, text } from "./dom.js";
import { number, rate } from "./format.js";

const MAX_ROWS = 300;
const STATES = ["ready", "delayed", "leased", "dead"];
const FEW = 8;
const ORDERS = {
  created: () => 0,
  name: (a, b) => a.name.localeCompare(b.name),
  ready: (a, b) => b.ready - a.ready,
  delayed: (a, b) => b.delayed - a.delayed,
  leased: (a, b) => b.leased - a.leased,
  dead: (a, b) => b.dead - a.dead,
  in: (a, b) => b.rates.published - a.rates.published,
  out: (a, b) => b.rates.delivered - a.rates.delivered,
};
const at = (id) => document.getElementById(id);

/** Connect the controls above the table. */
export function prepareQueues(refresh) {
  at("queue-filter").value = param("queues");
  at("queue-sort").value = param("by") in ORDERS ? param("by") : "created";
  at("queue-filter").addEventListener("input", async () => {
    change({ queues: at("queue-filter").value.trim() });
    await refresh();
  });
  at("queue-sort").addEventListener("change", async () => {
    change({ by: at("queue-sort").value === "created" ? "" : at("queue-sort").value });
    await refresh();
  });
}

/** Show the queues that match the filter, and mark the selected one. */
export function showQueues(state, selected) {
  const filter = at("queue-filter");
  filter.hidden = state.queues.length < FEW && filter.value === "";
  at("queue-sort").hidden = state.queues.length < 2;
  const wanted = filter.value.trim().toLowerCase();
  const queues = state.queues.filter((queue) => queue.name.toLowerCase().includes(wanted)).sort(ORDERS[at("queue-sort").value]);
  at("queue-table").hidden = state.queues.length === 0;
  showEmpty(state);
  at("no-match").hidden = queues.length > 0 || state.queues.length === 0;
  text(at("no-match"), `No queue has “${filter.value.trim()}” in its name.`);
  text(at("queues-title"), queues.length > MAX_ROWS ? `Queues: the first ${MAX_ROWS} of ${number(queues.length)}` : "Queues");
  list(at("queue-rows"), queues.slice(0, MAX_ROWS), (queue) => queue.id, makeRow, at("queues"));
  for (const row of at("queue-rows").children) {
    attribute(row, "aria-current", row.key === selected ? "true" : null);
  }
}

function makeRow(queue) {
  const name = el("a", { href: ofQueue(queue.id) });
  name.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // select() keeps the parameters of the rest of the page
    select(queue.id);
  });
  const paused = el("span", { class: "badge paused", hidden: true }, "paused");
  const counts = STATES.map((state) => el("td", { class: `number ${state}`, "data-label": state }));
  const into = el("td", { class: "number rate", "data-label": "in / s" });
  const out = el("td", { class: "number rate", "data-label": "out / s" });
  const line = sparkline(queue.history);
  const row = el("tr", {}, el("th", { scope: "row" }, name, paused), ...counts, into, out, el("td", { class: "minute" }, line));
  row.update = (updated) => {
    text(name, updated.name);
    paused.hidden = !updated.paused;
    STATES.forEach((state, n) => {
      text(counts[n], number(updated[state]));
      counts[n].classList.toggle("zero", updated[state] === 0);
    });
    text(into, rate(updated.rates.published));
    text(out, rate(updated.rates.delivered));
    into.classList.toggle("zero", updated.rates.published === 0);
    out.classList.toggle("zero", updated.rates.delivered === 0);
    line.update(updated.history);
  };
  // With a mouse the whole row is a link; with the keyboard the link in it is.
  row.addEventListener("click", (event) => {
    if (event.target.closest("a") === null) name.click();
  });
  return row;
}

function showEmpty(state) {
  const empty = at("no-queues");
  empty.hidden = state.queues.length > 0;
  if (empty.hidden || empty.childElementCount > 0) return;
  const { broker_url: broker, python, curl } = state.first_steps;
  empty.append(
    el("h3", {}, "No queues yet"),
    el("p", {}, "Point Kombu or Celery at this broker URL. They create a queue when they first declare it."),
    copyBlock(broker, "the broker URL"),
    el("p", {}, "Or paste this into Python, with Celery installed:"),
    copyBlock(python, "the Python code"),
    el("p", {}, "Any other client uses Cloudflare’s API. In a shell:"),
    copyBlock(curl, "the curl command"),
  );
}

/** Show the dialog for a new queue. */
export function newQueue(refresh) {
  const name = el("input", { name: "name", required: true, autocomplete: "off", maxlength: "63", placeholder: "jobs" });
  const consumer = el("select", {}, el("option", { value: "http_pull" }, "Clients that pull (Kombu, Celery, any HTTP client)"), el("option", { value: "" }, "None yet"));
  const dead = el("input", { autocomplete: "off", maxlength: "63", placeholder: "none: dead messages are deleted" });
  const retries = el("input", { type: "number", min: "0", max: "100", value: "3" });
  ask({
    title: "New queue",
    action: "Create queue",
    fields: [
      field("Name", name, "1 to 63 letters, digits and dashes"),
      field("Consumer", consumer),
      field("Retries before a message is dead", retries),
      field("Dead-letter queue", dead),
    ],
    submit: async () => {
      const settings = { max_retries: Number(retries.value) };
      const sent = { name: name.value.trim(), consumer: null };
      if (consumer.value) sent.consumer = { type: consumer.value, settings, dead_letter_queue: dead.value.trim() };
      const created = await post("/queues", sent);
      select(created.id);
      toast(`Created ${created.name}`);
      await refresh();
    },
  });
}
