// Starts both Workers on workerd and prints where they listen, as one line of JSON:
//
//   gateway     the gateway Worker; account ACCOUNT, tokens TOKENS
//   faulty      the same in front of a queue whose runtime fails
//   consumer    the test's consumer; POST / encodes a task
//   inspection  GET /records?queue=NAME what it got, DELETE /records forgets it,
//               GET /log what the runtime wrote
//
// Ends when its standard input does, so that it never outlives the test that started it.  The line
// "restart" there kills the runtime and starts it again, the gateway on the same port; "restarted"
// is printed when it is back.  The queues are in the runtime's memory: to keep them, run
// `--only consumer` and `--only gateway` as two processes with the same `--registry FOLDER`.

import { createServer } from "node:http";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { Log, LogLevel, Miniflare } from "miniflare";

const { values: options } = parseArgs({
  options: {
    only: { type: "string" },
    registry: { type: "string" },
  },
});

const ROOT = join(import.meta.dirname, "..");
const FOLDERS = ["gateway/src", "celery-consumer/src", "test"];
const COMPATIBILITY_DATE = "2026-10-01";

const ACCOUNT = "0123456789abcdef0123456789abcdef";
const TOKENS = { TOKEN_OLD: "old-token", TOKEN_NEW: "new-token", TOKEN_EMPTY: "" };
// A setting that is not a token, although its name begins like one.
const SETTINGS = { TOKENIZER: "no-token-at-all" };

// Bound to the gateway.  The test's consumer gets their messages, except those of "edge", which the
// example gets, and of "sink", which has no consumer: the runtime drops them.
const QUEUES = ["jobs", "emails-eu", "bulk", "flaky", "edge", "sink"];

const records = [];
const log = [];

const inspection = createServer(async (request, response) => {
  const url = new URL(request.url, "http://inspection");
  if (url.pathname === "/log") {
    response.end(JSON.stringify(log));
  } else if (request.method === "POST") {
    records.push(...JSON.parse(await textOf(request)));
    response.end();
  } else if (request.method === "DELETE") {
    records.length = 0;
    response.end();
  } else {
    const queue = url.searchParams.get("queue");
    response.end(JSON.stringify(records.filter((record) => !queue || record.queue === queue)));
  }
});
await new Promise((resolve) => inspection.listen(0, "127.0.0.1", resolve));
const inspectionUrl = `http://127.0.0.1:${inspection.address().port}`;

const miniflare = new Miniflare(configuration());
await miniflare.ready;
const listening = await urls();
console.log(
  JSON.stringify({
    account: ACCOUNT,
    tokens: Object.values(TOKENS).filter(Boolean),
    inspection: inspectionUrl,
    ...listening,
  }),
);

for await (const line of createInterface({ input: process.stdin })) {
  if (line === "restart") {
    await miniflare.setOptions(configuration(new URL(listening.gateway).port));
    console.log("restarted");
  }
}
await miniflare.dispose();
process.exit();

function configuration(gatewayPort = 0) {
  return {
    cf: false, // otherwise miniflare fetches it from the internet
    telemetry: { enabled: false },
    logRequests: false,
    log: new Log(LogLevel.NONE),
    handleStructuredLogs: ({ level, message }) => log.push({ level, message }),
    enableDevRegistry: Boolean(options.registry),
    ...(options.registry ? { unsafeDevRegistryPath: options.registry } : {}),
    workers: workers(Number(gatewayPort)),
  };
}

function workers(gatewayPort) {
  const gateways = [gateway("gateway", gatewayPort), gateway("faulty", 0)];
  const consumers = [consumer(), example()];
  if (options.only === "gateway") return gateways;
  if (options.only === "consumer") return consumers;
  return [...gateways, ...consumers];
}

function gateway(name, port) {
  const bindings = QUEUES.map((queue) => [bindingOf(queue), { type: "queue", name: queue }]);
  const tokens = Object.entries({ ...TOKENS, ...SETTINGS }).map(([key, value]) => [
    key,
    { type: "text", value },
  ]);
  return worker(name, name === "gateway" ? "gateway/src/index.js" : "test/faulty-gateway.js", {
    port,
    env: {
      ...Object.fromEntries([...bindings, ...tokens]),
      ACCOUNT_ID: { type: "text", value: ACCOUNT },
      REPORTS: { type: "queue", name: "Reports" },
      QUEUE_NAMES: { type: "json", value: { REPORTS: "Reports" } },
    },
  });
}

function consumer() {
  const batches = { type: "queue", maxBatchSize: 100, maxBatchTimeout: 0.1, maxRetries: 10 };
  return worker("consumer", "test/consumer.js", {
    env: {
      INSPECTION: { type: "external", address: new URL(inspectionUrl).host, http: {} },
      DEAD_LETTERS: { type: "queue", name: "buried" },
    },
    triggers: [
      ...["jobs", "emails-eu", "bulk", "Reports", "python"].map((name) => ({ ...batches, name })),
      { ...batches, name: "flaky", maxRetries: 2, deadLetterQueue: "dead" },
      ...["buried", "dead"].map((name) => ({ ...batches, name })),
    ],
  });
}

function example() {
  const batches = { maxBatchSize: 10, maxBatchTimeout: 0.1, maxRetries: 2 };
  return worker("example", "celery-consumer/src/index.js", {
    env: {
      PYTHON: { type: "queue", name: "python" },
      DEAD_LETTERS: { type: "queue", name: "buried" },
    },
    triggers: [{ type: "queue", name: "edge", ...batches }],
  });
}

function worker(name, mainModule, { env, triggers = [], port = 0 }) {
  return {
    config: {
      name,
      compatibilityDate: COMPATIBILITY_DATE,
      compatibilityFlags: ["nodejs_compat"],
      manifest: { mainModule, modules: modules() },
      env,
      triggers,
    },
    dev: { unsafeDirectSockets: [{ host: "127.0.0.1", port }] },
  };
}

function modules() {
  const paths = FOLDERS.flatMap((folder) =>
    readdirSync(join(ROOT, folder))
      .filter((file) => file.endsWith(".js") && file !== "serve.js")
      .map((file) => `${folder}/${file}`),
  );
  return Object.fromEntries(
    paths.map((path) => [path, { type: "esm", contents: readFileSync(join(ROOT, path), "utf8") }]),
  );
}

async function urls() {
  const names = workers().map(({ config }) => config.name);
  const entries = names.map(async (name) => [
    name,
    String(await miniflare.unsafeGetDirectURL(name)),
  ]);
  return Object.fromEntries(await Promise.all(entries));
}

function bindingOf(queue) {
  return queue.toUpperCase().replaceAll("-", "_");
}

async function textOf(request) {
  let text = "";
  request.setEncoding("utf8");
  for await (const chunk of request) text += chunk;
  return text;
}
