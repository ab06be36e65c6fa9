// The page: polls the emulator once per second and shows its state.

import { get, Refused, setToken } from "./api.js";
import { prepareControls } from "./controls.js";
import { ask, field } from "./dialogs.js";
import { attribute, el, text } from "./dom.js";
import { duration, moment, number } from "./format.js";
import { QueuePanel } from "./messages.js";
import { newQueue, showQueues } from "./queues.js";
import { prepareRequests, showRequests } from "./requests.js";

const POLL_INTERVAL_MS = 1000;
const at = (id) => document.getElementById(id);

let panel = null; // the panel of the selected queue
let askingForToken = false;
let running = null; // the promise of the current refresh

const selectedId = () => location.hash.match(/^#\/queues\/([0-9a-f]{32})$/)?.[1] ?? null;

/** Show the current state.  A call during a refresh waits and then refreshes once more. */
async function refresh() {
  while (running !== null) await running;
  running = poll();
  try {
    await running;
  } finally {
    running = null;
  }
}

async function poll() {
  try {
    const [state, { requests }] = await Promise.all([get("/state"), get("/requests?limit=150")]);
    showHeader(state);
    showQueues(state, selectedId());
    showRequests(requests);
    at("controls").update(state);
    await showSelected(state);
    connected(true);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askForToken();
    else if (error instanceof Refused && error.status === 404) return; // deleted since the last poll
    else connected(false, error);
  }
}

async function showSelected(state) {
  const id = selectedId();
  const queue = state.queues.find((candidate) => candidate.id === id);
  if (queue === undefined) {
    panel = null;
    at("queue").hidden = true;
    return;
  }
  if (panel === null || panel.queue.id !== id) panel = new QueuePanel(at("queue"), queue, refresh);
  await panel.update(queue, state.now);
}

function showHeader(state) {
  const ahead = state.ahead >= 1 ? ` (+${duration(state.ahead)})` : "";
  text(at("clock"), moment(state.now) + ahead);
  const { limit, left, recent, blocked_for: blocked, resets_in: resets, cloudflare_limit: official } = state.allowance;
  const meter = at("allowance");
  if (limit === null) {
    text(at("allowance-label"), "Requests in 5 min");
    text(at("allowance-text"), `${number(recent)} of Cloudflare’s ${number(official)}`);
    show(meter, recent / official, 1 - recent / official);
  } else {
    text(at("allowance-label"), "Allowance left");
    const when = blocked !== null ? `, blocked for ${duration(blocked)}` : resets !== null ? `, resets in ${duration(resets)}` : "";
    text(at("allowance-text"), `${number(left)} of ${number(limit)}${when}`);
    const share = limit > 0 ? left / limit : 0;
    show(meter, share, share);
  }
}

/** Fill the meter; its colour shows when little is left. */
function show(meter, filled, left) {
  attribute(meter, "value", Math.min(1, filled).toFixed(3));
  attribute(meter, "class", left < 0.1 ? "low" : left < 0.3 ? "medium" : "");
}

function connected(yes, error = null) {
  attribute(at("live"), "class", yes ? "live on" : "live off");
  text(at("live"), yes ? "Live" : "Not connected");
  at("banner").hidden = yes;
  if (!yes) text(at("banner"), error instanceof Refused ? error.message : "The emulator does not answer. Retrying every second.");
}

function askForToken() {
  if (askingForToken) return;
  askingForToken = true;
  const token = el("input", { type: "password", autocomplete: "current-password", required: true });
  const dialog = ask({
    title: "Token",
    action: "Open",
    cancel: null,
    fields: [el("p", {}, "This emulator listens on a network. Enter the token it was started with."), field("Token", token)],
    submit: async () => {
      setToken(token.value.trim());
      await get("/state");
    },
  });
  dialog.addEventListener("close", () => {
    askingForToken = false;
    refresh();
  });
}

function tick() {
  if (!document.hidden && !askingForToken && running === null) refresh();
}

at("new-queue").addEventListener("click", () => newQueue(refresh));
at("queue-filter").addEventListener("input", refresh);
prepareRequests(refresh);
prepareControls(at("controls"), refresh);
window.addEventListener("hashchange", async () => {
  await refresh();
  if (selectedId() !== null) at("queue").scrollIntoView({ block: "nearest" });
});
document.addEventListener("visibilitychange", tick);
setInterval(tick, POLL_INTERVAL_MS);
refresh();
