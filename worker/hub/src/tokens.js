// Who may connect.  Each secret that is called TOKEN, or whose name begins with TOKEN_, is one valid
// token, so that a new one can be added before the old one is deleted.

/** Returns a response that refuses the request, or null if its bearer token is one of the Worker's. */
export async function refusal(request, env) {
  const header = request.headers.get("Authorization");
  if (header === null) return answer(401, "no Bearer token");
  const [, presented] = /^Bearer +(\S+)$/i.exec(header) ?? [];
  if (!presented) return answer(401, "Authorization must be 'Bearer TOKEN'");
  if (!(await isValid(presented, env))) return answer(403, "this hub does not know the token");
  return null;
}

export function answer(status, error) {
  return Response.json({ error }, { status });
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
