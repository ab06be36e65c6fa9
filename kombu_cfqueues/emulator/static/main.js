// The page: polls the emulator once per second and shows its state.

import { read } from "./address.js";
import { showAllowance, showBlocks } from "./allowance.js";
import { get, Refused, setToken } from "./api.js";
import { prepareControls } from "./controls.js";
import { ask, field } from "./dialogs.js";
import { attribute, el, text } from "./dom.js";
import { duration, moment } from "./format.js";
import { showHub } from "./hub.js";
import { QueuePanel } from "./messages.js";
import { newQueue, prepareQueues, showQueues } from "./queues.js";
import { prepareRequests, showRequests, wantedRequests } from "./requests.js";

const POLL_INTERVAL_MS = 1000;
const at = (id) => document.getElementById(id);

let panel = null; // the panel of the selected queue
let askingForToken = false;
let running = null; // the promise of the current refresh

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
    const [state, { requests }] = await Promise.all([get("/state"), get(`/requests?limit=${wantedRequests()}`)]);
    showHeader(state);
    showBlocks(state, refresh);
    showQueues(state, read().queue);
    await showRequests(requests);
    showHub(state.hub);
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
  const id = read().queue;
  const queue = state.queues.find((candidate) => candidate.id === id);
  if (queue === undefined) {
    const hadFocus = at("queue").contains(document.activeElement);
    panel = null;
    at("queue").hidden = true;
    at("skip-messages").hidden = true;
    if (hadFocus) at("queues").focus();
    return;
  }
  if (panel === null || panel.queue.id !== id) panel = new QueuePanel(at("queue"), queue, refresh);
  at("skip-messages").hidden = false;
  await panel.update(queue, state.now);
}

function showHeader(state) {
  const ahead = state.ahead >= 1 ? ` (+${duration(state.ahead)})` : "";
  text(at("clock"), moment(state.now) + ahead);
  showAllowance(state.allowance);
}

function connected(yes, error = null) {
  attribute(at("live"), "class", yes ? "live on" : "live off");
  text(at("live"), yes ? "Live" : "Not connected");
  at("banner").hidden = yes;
  if (!yes) text(at("banner"), `${error.message} Retrying every second.`);
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
for (const link of document.querySelectorAll(".skip")) {
  link.addEventListener("click", (event) => {
    event.preventDefault(); // the address says what is shown
    const target = document.querySelector(link.getAttribute("href"));
    target.focus();
    target.scrollIntoView({ block: "start" });
  });
}
prepareQueues(refresh);
prepareRequests(refresh);
prepareControls(at("controls"), refresh);
let selected = read().queue;
window.addEventListener("hashchange", async () => {
  const before = selected;
  selected = read().queue;
  await refresh();
  if (selected !== null && selected !== before) at("queue").scrollIntoView({ block: "nearest" });
});
document.addEventListener("visibilitychange", tick);
setInterval(tick, POLL_INTERVAL_MS);
refresh();
