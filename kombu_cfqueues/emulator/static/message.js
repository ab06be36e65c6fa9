// A message in the list of a queue, and what is in it.

import { copyButton } from "./copy.js";
import { attribute, el, foreign, text } from "./dom.js";
import { bytes, count, duration, moment } from "./format.js";

const KINDS = { celery: "Celery", kombu: "Kombu", json: "JSON", text: "Text" };

/**
 * Make the row of a message.
 *
 * @param actions `toggle(message)`, `retry(message)`, `remove(message)` and `now`, the emulator’s time
 */
export function makeMessage(message, actions) {
  const badge = el("span", { class: `badge ${message.what.kind}` }, KINDS[message.what.kind]);
  const summary = foreign(el("code", { class: "summary" }), message.what.summary);
  const died = el("span", { class: "badge dead" });
  const state = el("span", { class: "state" });
  const age = el("span", { class: "age" });
  const attempts = el("span", { class: "attempts" });
  const id = `message-${message.number}`;
  const open = el("button", { class: "open", "aria-controls": id, onclick: () => actions.toggle(message) }, badge, summary, died);
  const name = () => el("span", { class: "unseen" }, ` (message ${message.id.slice(0, 8)})`);
  const retryLabel = el("span", {});
  const returnTo = el("span", { class: "unseen" });
  const retry = el("button", { class: "quiet", onclick: () => actions.retry(message) }, retryLabel, returnTo, name());
  const remove = el("button", { class: "quiet", onclick: () => actions.remove(message) }, "Delete", name());
  const body = el("div", { id, class: "body" });
  const line = el("div", { class: "line" }, open, state, attempts, age, el("span", { class: "actions" }, retry, remove));
  const row = el("li", { class: "message" }, line, body);
  row.update = (updated) => {
    const isDead = updated.died_in !== null;
    attribute(open, "aria-expanded", String(updated.isOpen));
    body.hidden = !updated.isOpen;
    attribute(state, "class", `state ${updated.state}`);
    text(state, stateOf(updated, actions.now));
    text(age, `${duration(actions.now - updated.published)} old`);
    text(attempts, updated.attempts === 0 ? "never delivered" : count(updated.attempts, "attempt"));
    died.hidden = !isDead;
    text(died, `died in ${updated.died_in}`);
    const nothingToRetry = updated.state === "ready" && !isDead;
    if (nothingToRetry && document.activeElement === retry) open.focus();
    retry.classList.toggle("absent", nothingToRetry);
    text(retryLabel, isDead ? "Return" : "Retry now");
    text(returnTo, isDead ? ` to ${updated.died_in}` : "");
    if (updated.whole && body.childElementCount === 0) body.append(...describe(updated.whole));
  };
  return row;
}

function stateOf(message, now) {
  const left = duration(message.visible_at - now);
  return { ready: "ready", delayed: `delayed, ${left} left`, leased: `leased, ${left} left` }[message.state];
}

/** Build the details of an open message: its facts, its content, its headers. */
function describe(message) {
  const { what, texts, code } = message;
  const facts = {};
  const long = {};
  const place = (name, value) => ((value.includes("\n") || value.length > 60 ? long : facts)[name] = value);
  if (what.kind === "celery") {
    place("Task", what.task);
    place("Task id", what.id);
    place("Arguments", texts.args ?? String(what.args));
    place("Keyword arguments", texts.kwargs ?? String(what.kwargs));
    facts.Eta = what.eta ?? "none";
    facts.Retries = String(what.retries);
    if (what.expires) facts.Expires = String(what.expires);
  }
  Object.assign(facts, { "Message id": message.id, Published: moment(message.published), Size: bytes(message.size) });
  if (message.delay_seconds) facts.Delay = duration(message.delay_seconds);
  facts["Content type"] = message.content_type;
  const death = [what.headers?.["x-death"]].flat().find((one) => one?.reason);
  if (death) facts.Died = deathOf(death);
  const parts = [
    el(
      "div",
      { class: "copies" },
      copyButton("Copy id", message.id, "the id"),
      copyButton("Copy body", message.body, "the body"),
      copyButton("Copy as curl", code.curl, "the message as curl"),
      copyButton("Copy as Python (SDK)", code.sdk, "the message as Python"),
      copyButton("Copy as Python (Kombu)", code.kombu, "the message as Python"),
    ),
    el("dl", { class: "facts-list" }, ...Object.entries(facts).map(([name, value]) => el("div", { class: value.length > 60 ? "long" : null }, el("dt", {}, name), foreign(el("dd", {}), value)))),
    ...Object.entries(long).map(([name, value]) => block(name, value)),
  ];
  if (what.kind !== "celery") parts.push(block("Body", texts.content));
  if (texts.headers && texts.headers !== "{}") parts.push(folded("Headers", texts.headers));
  if (texts.raw !== texts.content) parts.push(folded("Raw body", texts.raw));
  return parts;
}

/** Why a dead letter died, as kombu_cfqueues writes it in its headers. */
function deathOf({ reason, queue, hostname, attempts, time, exception, text: words }) {
  const cause = exception ? `: ${exception}: ${words}` : "";
  return `${reason} in ${queue} on ${hostname} after delivery ${attempts}, ${time}${cause}`;
}

const pre = (value) => foreign(el("pre", { tabindex: "0" }), value);
const block = (title, value) => el("div", { class: "block" }, el("h4", {}, title), pre(value));
const folded = (title, value) => el("details", {}, el("summary", {}, title), pre(value));
