// A consumer that reports to the test what it got, and fails on demand.

import { encodeTask } from "../celery-consumer/src/celery.js";
import { consume, Reject, Retry } from "../celery-consumer/src/consume.js";

/** Queues of messages that could not be handled: they are recorded as they are. */
const DEAD = ["buried", "dead"];

export default {
  async queue(batch, env, ctx) {
    const records = [];
    const record = (message, content) => {
      const { id, attempts } = message;
      records.push({ queue: batch.queue, id, attempts, at: Date.now(), ...content });
    };
    const handlers = {
      tasks: tasksThat(record),
      async message(decoded, { message }) {
        // There are a hundred thousand of them: record only what distinguishes them.
        const brief = batch.queue === "bulk";
        record(message, brief ? { body: decoded.body } : describe(decoded));
      },
    };
    if (DEAD.includes(batch.queue)) {
      batch.messages.forEach((message) => record(message, describe({ body: message.body })));
    } else {
      await consume(batch, handlers, env, ctx);
    }
    if (records.length > 0) {
      await env.INSPECTION.fetch("http://inspection/records", {
        method: "POST",
        body: JSON.stringify(records),
      });
    }
  },

  /** POST {name, args, kwargs, options}: the task as celery.js encodes it. */
  async fetch(request) {
    const { name, args, kwargs, options, rich } = await request.json();
    // What JSON cannot bring here.
    const more = rich
      ? [new Uint8Array([0, 255]), new Date("2026-05-04T09:30:00.250Z"), 2n ** 63n - 1n]
      : [];
    return Response.json(encodeTask(name, [...args, ...more], kwargs, options));
  },
};

/** A handler for every task with a dot in its name, except test.unknown. */
function tasksThat(record) {
  const own = (_, name) =>
    /^(?!test\.unknown$)\w+\./.test(name)
      ? { value: taskHandler(name, record), configurable: true, enumerable: true }
      : undefined;
  const get = (target, name) => own(target, name)?.value ?? target[name];
  return new Proxy({}, { getOwnPropertyDescriptor: own, get });
}

function taskHandler(name, record) {
  return async (task, { message }) => {
    record(message, { task: describe(task) });
    if (name === "test.flaky" && message.attempts <= task.kwargs.failures) {
      throw new Retry(task.kwargs.delay ?? 0);
    }
    if (name === "test.rejected") throw new Reject("the test asked for it");
  };
}

/** What JSON.stringify would lose, in words. */
function describe(value) {
  if (value instanceof ArrayBuffer) return describe(new Uint8Array(value));
  if (value instanceof Uint8Array) return { bytes: value.toBase64() };
  if (value instanceof Date) return { date: value.toISOString() };
  if (typeof value === "bigint") return { bigint: String(value) };
  if (Array.isArray(value)) return value.map(describe);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, describe(item)]));
}
