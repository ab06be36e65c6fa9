// One queue: its actions and its messages.

import { get, post, remove } from "./api.js";
import { ask, attempt, field, toast } from "./dialogs.js";
import { attribute, el, list, text } from "./dom.js";
import { bytes, count, duration, moment, number } from "./format.js";

const PAGE_SIZE = 50;
const SLOW_QUERY_MS = 100;
const KINDS = { celery: "Celery", kombu: "Kombu", json: "JSON", text: "Text" };

/** The panel of one queue, until another queue is selected. */
export class QueuePanel {
  constructor(section, queue, refresh) {
    this.section = section;
    this.queue = queue;
    this.refresh = refresh;
    this.now = 0;
    this.state = "";
    this.shown = null; // the query whose messages are shown
    this.nextPoll = 0; // when to repeat the query, in milliseconds of performance.now()
    this.before = []; // where each page after the first begins
    this.filter = el("div", { class: "segments", role: "group", "aria-label": "Messages shown" });
    this.build();
    this.show(queue, 0);
  }

  /** Fetch and show the messages of the current page. */
  async update(queue, now) {
    const query = new URLSearchParams({ limit: PAGE_SIZE, state: this.state });
    if (this.before.length) query.set("before", this.before.at(-1));
    const wanted = query.toString();
    const began = performance.now();
    if (wanted === this.shown && began < this.nextPoll) return this.show(queue, now);
    const page = await get(`/queues/${queue.id}/messages?${query}`);
    // With a million messages the query is slow and blocks the API: spend at most a tenth of the time.
    const took = performance.now() - began;
    this.nextPoll = performance.now() + (took > SLOW_QUERY_MS ? 10 * took : 0);
    this.shown = wanted;
    const current = new URLSearchParams({ limit: PAGE_SIZE, state: this.state });
    if (this.before.length) current.set("before", this.before.at(-1));
    if (wanted !== current.toString()) return; // the page was turned meanwhile
    this.show(queue, now);
    list(this.rows, page.messages, (message) => message.number, (message) => this.makeMessage(message));
    this.none.hidden = page.messages.length > 0;
    text(this.none, this.state ? `No ${this.state} messages` : "No messages");
    this.newer.hidden = this.before.length === 0;
    this.older.hidden = !page.more;
    this.oldest = page.messages.at(-1)?.number;
  }

  show(queue, now) {
    this.queue = queue;
    this.now = now;
    text(this.title, queue.name);
    text(this.pause, queue.paused ? "Resume" : "Pause");
    this.paused.hidden = !queue.paused;
    const all = queue.ready + queue.delayed + queue.leased;
    for (const [name, n] of Object.entries({ "": all, ready: queue.ready, delayed: queue.delayed, leased: queue.leased })) {
      text(this.segments[name].counter, number(n));
      attribute(this.segments[name], "aria-pressed", String(this.state === name));
    }
    this.showFacts(queue);
  }

  build() {
    this.title = el("h2", { id: "queue-title" });
    this.paused = el("span", { class: "badge paused" }, "paused");
    this.pause = el("button", { onclick: () => this.togglePause() });
    this.facts = el("p", { class: "details" });
    this.totals = el("p", { class: "details" });
    this.rows = el("ol", { class: "messages", id: "message-rows" });
    this.none = el("p", { class: "empty small" });
    this.newer = el("button", { class: "quiet", onclick: () => this.turn(() => this.before.pop()) }, "← Newer");
    this.older = el("button", { class: "quiet", onclick: () => this.turn(() => this.before.push(this.oldest)) }, "Older →");
    this.segments = {};
    for (const [state, label] of Object.entries({ "": "All", ready: "Ready", delayed: "Delayed", leased: "Leased" })) {
      const counter = el("span", { class: "count" });
      const button = el("button", { onclick: () => this.choose(state) }, label, " ", counter);
      button.counter = counter;
      this.segments[state] = button;
      this.filter.append(button);
    }
    this.section.replaceChildren(
      el(
        "div",
        { class: "panel-head" },
        this.title,
        this.paused,
        el("button", { class: "primary", onclick: () => this.publish() }, "Publish"),
        this.pause,
        el("button", { onclick: () => this.retryAll() }, "Retry all now"),
        el("button", { onclick: () => this.purge() }, "Purge"),
        el("button", { class: "quiet danger-text", onclick: () => this.deleteQueue() }, "Delete queue"),
      ),
      this.facts,
      this.totals,
      this.filter,
      this.none,
      this.rows,
      el("div", { class: "pages" }, this.newer, this.older),
    );
    this.section.hidden = false;
  }

  showFacts(queue) {
    const consumer = queue.consumer;
    const parts = [
      consumer === null ? "no consumer" : consumer.type === "http_pull" ? "clients pull" : `Worker ${consumer.script ?? ""}`,
      consumer === null ? null : `${count(consumer.max_retries, "retry").replace("retrys", "retries")}`,
      consumer?.dead_letter_queue ? `dead letters to ${consumer.dead_letter_queue}` : null,
      `kept for ${duration(queue.retention)}`,
      queue.delivery_delay ? `each delayed by ${duration(queue.delivery_delay)}` : null,
      bytes(queue.bytes),
      `id ${queue.id}`,
    ];
    text(this.facts, parts.filter((part) => part !== null).join(" · "));
    const { published, delivered, acknowledged, retried, lease_expired: expiredLeases, dead, expired } = queue.totals;
    const totals = [`${number(published)} published`, `${number(delivered)} delivered`, `${number(acknowledged)} acknowledged`];
    if (retried) totals.push(`${number(retried)} retried`);
    if (expiredLeases) totals.push(`${count(expiredLeases, "lease")} expired`);
    if (dead) totals.push(`${number(dead)} out of retries`);
    if (expired) totals.push(`${number(expired)} expired`);
    text(this.totals, `Since the start: ${totals.join(", ")}`);
  }

  /** Refresh at once after a change, even if the query is slow. */
  async renew() {
    this.nextPoll = 0;
    await this.refresh();
  }

  async choose(state) {
    this.state = state;
    this.before = [];
    await this.renew();
  }

  async turn(change) {
    change();
    await this.renew();
    this.section.scrollIntoView({ block: "start" });
  }

  // --- a message

  makeMessage(message) {
    const badge = el("span", { class: `badge ${message.what.kind}` }, KINDS[message.what.kind]);
    const summary = el("code", { class: "summary" }, message.what.summary);
    const state = el("span", { class: "state" });
    const age = el("span", { class: "age" });
    const attempts = el("span", { class: "attempts" });
    const died = el("span", { class: "badge dead" });
    const id = `message-${message.number}`;
    const open = el("button", { class: "open", "aria-expanded": "false", "aria-controls": id }, badge, summary, died);
    const label = `message ${message.id.slice(0, 8)}`;
    const retry = el("button", { class: "quiet", "aria-label": `Retry ${label} now`, onclick: () => this.retry([message.number]) }, "Retry now");
    const deleteButton = el("button", { class: "quiet", "aria-label": `Delete ${label}`, onclick: () => this.delete([message.number]) }, "Delete");
    const body = el("div", { id, class: "body", hidden: true });
    open.addEventListener("click", () => this.toggle(open, body, message));
    const row = el("li", { class: "message" }, el("div", { class: "line" }, open, state, attempts, age, el("span", { class: "actions" }, retry, deleteButton)), body);
    row.update = (updated) => {
      attribute(state, "class", `state ${updated.state}`);
      text(state, stateOf(updated, this.now));
      text(age, `${duration(this.now - updated.published)} old`);
      text(attempts, updated.attempts === 0 ? "never delivered" : count(updated.attempts, "attempt"));
      died.hidden = updated.died_in === null;
      text(died, `died in ${updated.died_in}`);
      const isDead = updated.died_in !== null;
      retry.disabled = updated.state === "ready" && !isDead;
      text(retry, isDead ? `Return to ${updated.died_in}` : "Retry now");
    };
    return row;
  }

  async toggle(open, body, message) {
    const shown = open.getAttribute("aria-expanded") === "true";
    attribute(open, "aria-expanded", String(!shown));
    body.hidden = shown;
    if (shown || body.childElementCount > 0) return;
    const whole = await attempt(() => get(`/queues/${this.queue.id}/messages/${message.number}`));
    if (whole !== null) body.append(...describe(whole));
  }

  async retry(numbers) {
    await attempt(() => post(`/queues/${this.queue.id}/retry`, { numbers }), ({ retried }) => (retried ? "The message is ready" : "The message was already ready or deleted"));
    await this.renew();
  }

  async delete(numbers) {
    await attempt(() => post(`/queues/${this.queue.id}/delete`, { numbers }), "Deleted");
    await this.renew();
  }

  // --- the queue

  async togglePause() {
    const paused = !this.queue.paused;
    await attempt(() => post(`/queues/${this.queue.id}/pause`, { paused }), paused ? "Paused: pulls get 409" : "Resumed");
    await this.renew();
  }

  async retryAll() {
    await attempt(() => post(`/queues/${this.queue.id}/retry`), ({ retried }) => `${count(retried, "message")} made ready`);
    await this.renew();
  }

  purge() {
    const all = this.queue.ready + this.queue.delayed + this.queue.leased;
    this.confirm(`Purge ${this.queue.name}?`, `${count(all, "message")} will be deleted, including delayed and leased ones.`, "Purge", async () => {
      const { deleted } = await post(`/queues/${this.queue.id}/purge`);
      toast(`${count(deleted, "message")} deleted`);
    });
  }

  deleteQueue() {
    this.confirm(`Delete ${this.queue.name}?`, "The queue, its consumer and its messages will be deleted.", "Delete queue", async () => {
      await remove(`/queues/${this.queue.id}`);
      location.hash = "#/";
      toast(`${this.queue.name} deleted`);
    });
  }

  confirm(title, sentence, action, submit) {
    ask({ title, action, danger: true, fields: [el("p", {}, sentence)], submit: async () => { await submit(); await this.renew(); } });
  }

  publish() {
    const kind = el(
      "select",
      {},
      el("option", { value: "celery" }, "Celery task"),
      el("option", { value: "json" }, "JSON"),
      el("option", { value: "text" }, "Text"),
    );
    const task = el("input", { autocomplete: "off", spellcheck: "false", placeholder: "shop.tasks.send_receipt" });
    const args = el("textarea", { rows: "2", spellcheck: "false" }, "[]");
    const kwargs = el("textarea", { rows: "2", spellcheck: "false" }, "{}");
    const body = el("textarea", { rows: "6", spellcheck: "false" });
    const delay = el("input", { type: "number", min: "0", max: "86400", placeholder: "the queue’s own" });
    const forTask = [field("Task", task), field("Arguments, as JSON", args), field("Keyword arguments, as JSON", kwargs)];
    const forBody = [field("Body", body)];
    const fit = () => {
      for (const input of forTask) input.hidden = kind.value !== "celery";
      for (const input of forBody) input.hidden = kind.value === "celery";
      if (kind.value === "json" && body.value === "") body.value = "{\n  \"greeting\": \"hello\"\n}";
    };
    kind.addEventListener("change", fit);
    ask({
      title: `Publish to ${this.queue.name}`,
      action: "Publish",
      fields: [field("What", kind), ...forTask, ...forBody, field("Delay in seconds", delay)],
      submit: async () => {
        const sent = { kind: kind.value };
        if (delay.value !== "") sent.delay_seconds = Number(delay.value);
        if (kind.value === "celery") {
          Object.assign(sent, { task: task.value.trim(), args: parsed(args, "The arguments"), kwargs: parsed(kwargs, "The keyword arguments") });
        } else sent.body = kind.value === "json" ? parsed(body, "The body") : body.value;
        await post(`/queues/${this.queue.id}/messages`, sent);
        toast("Published");
        await this.renew();
      },
    });
    fit();
  }
}

function stateOf(message, now) {
  const left = duration(message.visible_at - now);
  return { ready: "ready", delayed: `delayed, ${left} left`, leased: `leased, ${left} left` }[message.state];
}

function parsed(input, name) {
  try {
    return JSON.parse(input.value);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
}

/** Build the details of an open message: its facts, its content, its headers. */
function describe(message) {
  const { what } = message;
  const facts = {};
  if (what.kind === "celery") {
    Object.assign(facts, {
      Task: what.task,
      "Task id": what.id,
      Arguments: json(what.args),
      "Keyword arguments": json(what.kwargs),
      Eta: what.eta ?? "none",
      Retries: String(what.retries),
    });
    if (what.expires) facts.Expires = String(what.expires);
  }
  Object.assign(facts, { "Message id": message.id, Published: moment(message.published), Size: bytes(message.size) });
  if (message.delay_seconds) facts.Delay = duration(message.delay_seconds);
  facts["Content type"] = message.content_type;
  const death = [what.headers?.["x-death"]].flat().find((one) => one?.reason);
  if (death) facts.Died = deathOf(death);
  const parts = [
    el("dl", { class: "facts-list" }, ...Object.entries(facts).map(([name, value]) => el("div", { class: value.length > 20 ? "long" : null }, el("dt", {}, name), el("dd", {}, value)))),
  ];
  if (what.kind !== "celery") parts.push(block("Body", what.content));
  if (what.headers && Object.keys(what.headers).length) parts.push(folded("Headers", what.headers));
  if (what.kind !== "json" && what.kind !== "text") parts.push(folded("Raw body", message.body));
  return parts;
}

/** Why a dead letter died, as kombu_cfqueues writes it in its headers. */
function deathOf({ reason, queue, hostname, attempts, time, exception, text }) {
  const cause = exception ? `: ${exception}: ${text}` : "";
  return `${reason} in ${queue} on ${hostname} after delivery ${attempts}, ${time}${cause}`;
}

const json = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const block = (title, value) => el("div", { class: "block" }, el("h4", {}, title), el("pre", { tabindex: "0" }, pretty(value)));
const folded = (title, value) => el("details", {}, el("summary", {}, title), el("pre", { tabindex: "0" }, pretty(value)));
