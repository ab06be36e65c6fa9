// The publishing part of Cloudflare's Queues API, in front of queue bindings.
//
//   GET  /client/v4/accounts/{account}/queues?page=&per_page=&name=
//   GET  /client/v4/accounts/{account}/queues/{queue}
//   GET  /client/v4/accounts/{account}/queues/{queue}/metrics
//   POST /client/v4/accounts/{account}/queues/{queue}/messages
//   POST /client/v4/accounts/{account}/queues/{queue}/messages/batch

import { failure, Refusal, success } from "./answers.js";
import { boundQueues, describe, findQueue, listQueues } from "./directory.js";
import { readBatch, readMessage } from "./messages.js";
import { metricsOf, publish } from "./publish.js";
import { authenticate } from "./tokens.js";

export default {
  async fetch(request, env) {
    try {
      await authenticate(request, env);
      return await route(request, env);
    } catch (error) {
      if (error instanceof Refusal) return failure(error);
      console.error(error);
      return failure(new Refusal(500, 15000, "Unknown internal error of the gateway"));
    }
  },
};

async function route(request, env) {
  const url = new URL(request.url);
  const [, account, path] =
    /^\/client\/v4\/accounts\/([^/]+)\/queues(\/.*)?$/.exec(url.pathname) ?? [];
  if (account === undefined || account !== env.ACCOUNT_ID) {
    throw new Refusal(404, 7003, `Could not route to ${url.pathname}: no such path or account`);
  }
  const [, id, rest] = /^\/([^/]+)(\/.*)?$/.exec(path ?? "") ?? [];
  switch (`${request.method} ${id ? "/{queue}" : ""}${rest ?? ""}`) {
    case "GET ":
      return listQueues(url, env);
    case "GET /{queue}":
      return success(describe(await findQueue(id, env)));
    case "GET /{queue}/metrics":
      return success(metricsOf(await (await findQueue(id, env)).binding.metrics()));
    case "POST /{queue}/messages":
      return publish(await findQueue(id, env), await readMessage(request));
    case "POST /{queue}/messages/batch":
      return publish(await findQueue(id, env), await readBatch(request));
    case "POST ":
      throw await refusedCreation(env);
    default:
      throw new Refusal(
        403,
        10106,
        `Unauthorized: the gateway only publishes, and does not serve ${request.method} here. ` +
          "Consumers and administration need Cloudflare's API",
      );
  }
}

/** The code means a missing permission, which clients distinguish from a wrong token. */
async function refusedCreation(env) {
  const names = (await boundQueues(env)).map((queue) => queue.name);
  return new Refusal(
    403,
    10106,
    "Unauthorized: the gateway cannot create queues. Add a binding for this one to the gateway's " +
      `wrangler.jsonc and deploy it. It now serves: ${names.join(", ") || "none"}`,
  );
}
