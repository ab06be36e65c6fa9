// The queues that the gateway serves: those that wrangler.jsonc binds.

import { Refusal, success } from "./answers.js";

const PER_PAGE = 100;

/**
 * The bound queues, as `[{ id, name, binding }]`.
 *
 * A binding does not know its queue's name, so the name is derived from the binding's: EMAILS is
 * `emails`, EMAILS_EU is `emails-eu`.  QUEUE_NAMES overrides the derived name.
 */
export async function boundQueues(env) {
  const bindings = Object.keys(env).filter((key) => typeof env[key]?.sendBatch === "function");
  return Promise.all(
    bindings.map(async (key) => {
      const name = env.QUEUE_NAMES?.[key] ?? key.toLowerCase().replaceAll("_", "-");
      return { id: await queueId(name), name, binding: env[key] };
    }),
  );
}

export async function findQueue(id, env) {
  if (!/^[0-9a-f]{32}$/.test(id)) {
    throw new Refusal(400, 10107, `'${id}' is not a queue id`);
  }
  const queue = (await boundQueues(env)).find((candidate) => candidate.id === id);
  if (!queue) {
    throw new Refusal(404, 10104, "Queue does not exist: no queue of the gateway has this id");
  }
  return queue;
}

/** `GET /queues?page=1&per_page=100&name=a&name=b` */
export async function listQueues(url, env) {
  const names = url.searchParams.getAll("name");
  const page = positive(url.searchParams.get("page"), 1);
  const perPage = positive(url.searchParams.get("per_page"), PER_PAGE);

  const all = await boundQueues(env);
  const found = all.filter((queue) => names.length === 0 || names.includes(queue.name));
  const shown = found.slice((page - 1) * perPage, page * perPage);
  return success(shown.map(describe), {
    page,
    per_page: perPage,
    count: shown.length,
    total_count: found.length,
    total_pages: Math.ceil(found.length / perPage),
  });
}

export function describe({ id, name }) {
  return { queue_id: id, queue_name: name };
}

/**
 * The queue's id at this gateway.  Bindings hide Cloudflare's, so it is made from the name: the
 * same on every machine and after every deployment.
 */
async function queueId(name) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name));
  return new Uint8Array(digest).toHex().slice(0, 32);
}

function positive(text, fallback) {
  const number = Number(text);
  return Number.isInteger(number) && number > 0 ? number : fallback;
}
