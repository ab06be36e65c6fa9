// The hub: fanout and remote control for Kombu and Celery, on a Durable Object for each namespace.
//
//   GET /hub/{namespace}   a WebSocket; without an upgrade, the connected clients

import { answer, refusal } from "./tokens.js";

export { Hub } from "./hub.js";

export default {
  async fetch(request, env) {
    const refused = await refusal(request, env);
    if (refused !== null) return refused;
    const [, namespace] = /^\/hub\/([^/]*)$/.exec(new URL(request.url).pathname) ?? [];
    if (namespace === undefined || !/^[A-Za-z0-9_-]{1,64}$/.test(namespace)) {
      return answer(
        404,
        "a namespace consists of at most 64 letters, digits, dashes and underscores",
      );
    }
    if (request.method !== "GET") return answer(405, "Method not allowed");
    return env.HUB.get(env.HUB.idFromName(namespace)).fetch(request);
  },
};
