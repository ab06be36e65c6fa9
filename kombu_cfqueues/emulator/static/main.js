// The page: asks the emulator once a second and shows what it says.

import { get, Refused, setToken } from "./api.js";
import { ask, field } from "./dialogs.js";
import { attribute, el, text } from "./dom.js";
import { duration, moment, number } from "./format.js";
import { QueuePanel } from "./messages.js";
import { newQueue, showQueues } from "./queues.js";
import { prepareRehearse } from "./rehearse.js";
import { prepareRequests, showRequests } from "./requests.js";

const EVERY_MS = 1000;
const at = (id) => document.getElementById(id);

let panel = null; // of the chosen queue
let asking = false; // for the token
let running = null; // the refresh that is under way

const chosen = () => location.hash.match(/^#\/queues\/([0-9a-f]{32})$/)?.[1] ?? null;

/** Show what the emulator says now.  Calls that come meanwhile wait for one more round. */
async function refresh() {
  while (running !== null) await running;
  running = round();
  try {
    await running;
  } finally {
    running = null;
  }
}

async function round() {
  try {
    const [state, { requests }] = await Promise.all([get("/state"), get("/requests?limit=150")]);
    showHead(state);
    showQueues(state, chosen());
    showRequests(requests);
    at("rehearse").update(state);
    await showChosen(state);
    connected(true);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askForToken();
    else if (error instanceof Refused && error.status === 404) return; // gone since the list
    else connected(false, error);
  }
}

async function showChosen(state) {
  const id = chosen();
  const queue = state.queues.find((one) => one.id === id);
  if (queue === undefined) {
    panel = null;
    at("queue").hidden = true;
    return;
  }
  if (panel === null || panel.queue.id !== id) panel = new QueuePanel(at("queue"), queue, refresh);
  await panel.update(queue, state.now);
}

function showHead(state) {
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
    const when = blocked !== null ? `, blocked for ${duration(blocked)}` : resets !== null ? `, ${duration(resets)} to go` : "";
    text(at("allowance-text"), `${number(left)} of ${number(limit)}${when}`);
    const share = limit > 0 ? left / limit : 0;
    show(meter, share, share);
  }
}

/** Fill the meter; its colour says when little is left. */
function show(meter, filled, left) {
  attribute(meter, "value", Math.min(1, filled).toFixed(3));
  attribute(meter, "class", left < 0.1 ? "low" : left < 0.3 ? "medium" : "");
}

function connected(yes, error = null) {
  attribute(at("live"), "class", yes ? "live on" : "live off");
  text(at("live"), yes ? "Live" : "Not connected");
  at("banner").hidden = yes;
  if (!yes) text(at("banner"), error instanceof Refused ? error.message : "The emulator does not answer. Trying again each second.");
}

function askForToken() {
  if (asking) return;
  asking = true;
  const token = el("input", { type: "password", autocomplete: "current-password", required: true });
  const dialog = ask({
    title: "Token",
    action: "Open",
    cancel: null,
    fields: [el("p", {}, "This emulator listens on a network. Its token is the one it was started with."), field("Token", token)],
    submit: async () => {
      setToken(token.value.trim());
      await get("/state");
    },
  });
  dialog.addEventListener("close", () => {
    asking = false;
    refresh();
  });
}

function tick() {
  if (!document.hidden && !asking && running === null) refresh();
}

at("new-queue").addEventListener("click", () => newQueue(refresh));
at("queue-filter").addEventListener("input", refresh);
prepareRequests(refresh);
prepareRehearse(at("rehearse"), refresh);
window.addEventListener("hashchange", async () => {
  await refresh();
  if (chosen() !== null) at("queue").scrollIntoView({ block: "nearest" });
});
document.addEventListener("visibilitychange", tick);
setInterval(tick, EVERY_MS);
refresh();
