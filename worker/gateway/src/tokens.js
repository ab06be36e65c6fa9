// Who may publish.  Each secret that is called TOKEN, or whose name begins with TOKEN_, is one valid
// token, so that a new one can be added before the old one is deleted.

import { Refusal } from "./answers.js";

/** Refuses a request without one of the Worker's tokens. */
export async function authenticate(request, env) {
  const header = request.headers.get("Authorization");
  if (header === null) throw new Refusal(400, 9106, "Missing Authorization header");
  const [, presented] = /^Bearer +(\S+)$/i.exec(header) ?? [];
  if (!presented) {
    throw new Refusal(400, 6003, "Invalid request headers: Authorization must be 'Bearer TOKEN'");
  }
  if (!(await isValid(presented, env))) {
    throw new Refusal(403, 10000, "Authentication error: this gateway does not know the token");
  }
}

async function isValid(presented, env) {
  const digest = await sha256(presented);
  let valid = false;
  // Digests have one length, and every token is compared, so the duration reveals neither a token's
  // length, nor how much of it was right, nor which token matched.
  for (const token of tokens(env)) {
    const same = crypto.subtle.timingSafeEqual(digest, await sha256(token));
    valid ||= same;
  }
  return valid;
}

function tokens(env) {
  return Object.keys(env)
    .filter((name) => /^TOKEN(_|$)/.test(name) && typeof env[name] === "string")
    .map((name) => env[name].trim())
    .filter((token) => token !== ""); // an empty secret must not be a valid token
}

function sha256(text) {
  return crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
}
