// Calls of the emulator's own endpoints, with a token if the emulator requires one.

const KEY = "cfqueues-emulator-token";
const PATIENCE_MS = 10_000; // a query of a million messages takes some seconds

/** The emulator answered with an error; this error has its message. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The emulator did not answer. */
export class Unreachable extends Error {
  constructor() {
    super("The emulator does not answer.");
  }
}

/** JSON text that is sent unchanged: JavaScript would round a large number. */
export class Written {
  constructor(text) {
    this.text = text;
  }
}

/** Store the token for this tab. */
export const setToken = (token) => sessionStorage.setItem(KEY, token);

/** Fetch what is shown; an emulator that hangs counts as one that does not answer. */
export const get = (path) => call("GET", path, undefined, undefined, AbortSignal.timeout(PATIENCE_MS));
export const post = (path, body = {}) => call("POST", path, encode(body), "application/json");
export const remove = (path) => call("DELETE", path);

/** Send JSON lines. */
export const postLines = (path, lines) => call("POST", path, lines, "application/x-ndjson");

/** Fetch a file. */
export const download = async (path) => (await answerOf("GET", path)).blob();

async function call(method, path, body, type, signal) {
  const answer = await answerOf(method, path, body, type, signal);
  return lost(() => answer.json());
}

async function answerOf(method, path, body, type, signal) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = type;
  const answer = await lost(() => fetch(`/_emulator${path}`, { method, headers, body, signal }));
  if (answer.ok) return answer;
  const result = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, result.error ?? `The emulator answered with status ${answer.status}.`);
}

/** Run an action that fails only if the connection does; the browser's message does not say so. */
async function lost(action) {
  try {
    return await action();
  } catch {
    throw new Unreachable();
  }
}

function encode(body) {
  const members = Object.entries(body).map(([name, value]) => `${JSON.stringify(name)}:${value instanceof Written ? value.text : JSON.stringify(value)}`);
  return `{${members.join(",")}}`;
}
