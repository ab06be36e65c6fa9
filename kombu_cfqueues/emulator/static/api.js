// Calls of the emulator's own endpoints, with a token if the emulator requires one.

const KEY = "cfqueues-emulator-token";

/** The emulator answered with an error, whose message this error has. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Store the token for this tab. */
export const setToken = (token) => sessionStorage.setItem(KEY, token);

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

async function call(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(`/_emulator${path}`, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const result = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (!answer.ok) throw new Refused(answer.status, result.error ?? `status ${answer.status}`);
  return result;
}
