// One queue: its actions and its messages.

import { change, numbers, param, select } from "./address.js";
import { get, post, Refused, remove } from "./api.js";
import { ask, attempt, toast } from "./dialogs.js";
import { attribute, el, list, text } from "./dom.js";
import { bytes, count, duration, number } from "./format.js";
import { makeMessage } from "./message.js";
import { publish } from "./publish.js";
import { exportMessages, importMessages } from "./transfer.js";

const PAGE_SIZE = 50;
const MOST_OPEN = 20;
const SLOW_QUERY_MS = 100;
const TYPING_MS = 250;
const ORDERS = { newest: "Newest first", oldest: "Oldest first", due: "Next to be delivered", attempts: "Most attempts", largest: "Largest" };

/** The panel of one queue, until another queue is selected. */
export class QueuePanel {
  constructor(section, queue, refresh) {
    this.section = section;
    this.queue = queue;
    this.refresh = refresh;
    this.now = 0;
    this.page = null; // the last answer, and the query that it answers
    this.nextPoll = 0; // when to repeat the query, in milliseconds of performance.now()
    this.wholes = new Map(); // open messages in full, by number
    this.filter = el("div", { class: "segments", role: "group", "aria-label": "Messages shown" });
    this.build();
    this.show(queue, 0);
  }

  /** Fetch and show the messages of the current page. */
  async update(queue, now) {
    const query = this.query();
    if (this.page?.query !== query || performance.now() >= this.nextPoll) {
      const answer = await get(`/queues/${queue.id}/messages?${query}`);
      // With a million messages the query blocks the API: spend at most a tenth of the time on it.
      const cost = 1000 * answer.cpu_seconds;
      this.nextPoll = performance.now() + (cost > SLOW_QUERY_MS ? 10 * cost : 0);
      if (query !== this.query()) return; // the page was turned meanwhile
      this.page = { query, ...answer };
    }
    const shown = await this.withOpen(queue, this.page.messages);
    this.show(queue, now);
    this.none.hidden = shown.length > 0;
    text(this.none, this.nothing());
    list(this.rows, shown, (message) => message.number, (message) => makeMessage(message, this), this.none);
    this.newer.hidden = pages().length === 0;
    this.older.hidden = this.page.next === null;
    const searched = this.page.searched;
    text(this.searched, searched === null ? "" : this.page.next === null ? `Searched ${count(searched, "message")}.` : `Searched ${count(searched, "message")} so far.`);
    text(this.older, searched === null ? "Next page →" : "Search on →");
  }

  query() {
    const query = new URLSearchParams({ limit: PAGE_SIZE });
    for (const name of ["state", "sort", "text"]) if (param(name)) query.set(name, param(name));
    if (pages().length) query.set("after", pages().at(-1));
    return query.toString();
  }

  nothing() {
    const kind = param("state") ? `${param("state")} messages` : "messages";
    return param("text") ? `No ${kind} with “${param("text")}”${this.page.next === null ? "" : " yet"}` : `No ${kind}`;
  }

  /** Return the messages, the open ones in full; open messages of other pages come first. */
  async withOpen(queue, messages) {
    const open = numbers("open").slice(-MOST_OPEN);
    for (const number of this.wholes.keys()) if (!open.includes(number)) this.wholes.delete(number);
    const elsewhere = [];
    for (const wanted of open) {
      const here = messages.some((message) => message.number === wanted);
      if (here && this.wholes.has(wanted)) continue;
      try {
        const whole = await get(`/queues/${queue.id}/messages/${wanted}`);
        this.wholes.set(wanted, whole);
        if (!here) elsewhere.push(whole);
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 404) throw error;
        this.keepOpen(numbers("open").filter((number) => number !== wanted)); // it is gone
      }
    }
    return [...elsewhere, ...messages].map((message) => ({ ...message, isOpen: this.wholes.has(message.number), whole: this.wholes.get(message.number) }));
  }

  keepOpen(open) {
    change({ open: open.join(".") });
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
      attribute(this.segments[name], "aria-pressed", String(param("state") === name));
    }
    if (document.activeElement !== this.find) this.find.value = param("text"); // the back button
    this.order.value = param("sort") in ORDERS ? param("sort") : "newest";
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
    this.none.tabIndex = -1;
    this.searched = el("p", { class: "details", role: "status" });
    this.newer = el("button", { class: "quiet", onclick: () => this.turn(pages().slice(0, -1)) }, "← Previous page");
    this.older = el("button", { class: "quiet", onclick: () => this.turn([...pages(), this.page.next]) }, "Next page →");
    this.find = el("input", { type: "search", placeholder: "Find a text", "aria-label": "Find a text in the messages" });
    this.find.value = param("text");
    this.find.addEventListener("input", () => this.search());
    this.order = el("select", { "aria-label": "Sort the messages" }, ...Object.entries(ORDERS).map(([value, label]) => el("option", { value }, label)));
    this.order.value = param("sort") in ORDERS ? param("sort") : "newest";
    this.order.addEventListener("change", () => this.choose({ sort: this.order.value === "newest" ? "" : this.order.value }));
    this.segments = {};
    for (const [state, label] of Object.entries({ "": "All", ready: "Ready", delayed: "Delayed", leased: "Leased" })) {
      const counter = el("span", { class: "count" });
      const button = el("button", { onclick: () => this.choose({ state }) }, label, " ", counter);
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
        el("button", { class: "primary", onclick: () => publish(this.queue, () => this.renew()) }, "Publish"),
        this.pause,
        el("button", { onclick: () => this.retryAll() }, "Retry all now"),
        el("button", { onclick: () => exportMessages(this.queue) }, "Export"),
        el("button", { onclick: () => importMessages(this.queue, () => this.renew()) }, "Import"),
        el("button", { onclick: () => this.purge() }, "Purge"),
        el("button", { class: "quiet danger-text", onclick: () => this.deleteQueue() }, "Delete queue"),
      ),
      this.facts,
      this.totals,
      el("h3", { class: "unseen", id: "messages", tabindex: "-1" }, "Messages"),
      el("div", { class: "choices" }, this.filter, this.find, this.order),
      this.none,
      this.rows,
      el("div", { class: "pages" }, this.newer, this.searched, this.older),
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

  /** Show other messages, from the first page on. */
  async choose(changes) {
    change({ ...changes, page: "", open: "" }, { fresh: true });
    await this.renew();
  }

  search() {
    clearTimeout(this.typing);
    this.typing = setTimeout(async () => {
      change({ text: this.find.value.trim(), page: "", open: "" });
      await this.renew();
    }, TYPING_MS);
  }

  async turn(cursors) {
    change({ page: cursors.join("~"), open: "" }, { fresh: true });
    await this.renew();
    this.section.scrollIntoView({ block: "start" });
  }

  // --- a message

  async toggle(message) {
    const open = numbers("open");
    this.keepOpen(open.includes(message.number) ? open.filter((number) => number !== message.number) : [...open, message.number]);
    await this.refresh();
  }

  async retry(message) {
    await attempt(() => post(`/queues/${this.queue.id}/retry`, { numbers: [message.number] }), ({ retried }) => (retried ? "The message is ready" : "The message was already ready or deleted"));
    await this.renew();
  }

  async remove(message) {
    await attempt(() => post(`/queues/${this.queue.id}/delete`, { numbers: [message.number] }), "Deleted");
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
      select(null);
      toast(`${this.queue.name} deleted`);
    });
  }

  confirm(title, sentence, action, submit) {
    ask({ title, action, danger: true, fields: [el("p", {}, sentence)], submit: async () => { await submit(); await this.renew(); } });
  }
}

/** Where the pages after the first one begin, up to the current one. */
const pages = () => param("page").split("~").filter((cursor) => /^\d{1,18}-\d{1,18}$/.test(cursor));
