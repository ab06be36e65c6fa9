// Passes a batch of queue messages to handlers, and settles each message: acknowledges it, retries
// it with a delay, or dead-letters it.

import { decode, DecodeError, isExpired } from "./celery.js";

/** Longest delay of a retry, in seconds (Cloudflare's limit: 24 hours). */
const LONGEST_DELAY = 86_400;

/** Thrown by a handler: deliver the message again after `delaySeconds`. */
export class Retry extends Error {
  name = "Retry";

  constructor(delaySeconds, reason = "asked to retry") {
    super(reason);
    this.delaySeconds = delaySeconds;
  }
}

/** Thrown by a handler: a retry cannot help, so dead-letter the message. */
export class Reject extends Error {
  name = "Reject";
}

/**
 * Handles each message of the batch on its own, so that one failure never repeats the others.
 *
 * `handlers.tasks` maps names of Celery tasks to `async (task, { message, env, ctx }) => …`;
 * `handlers.message`, if given, takes all other messages: `async (decoded, { … }) => …`.
 */
export async function consume(batch, handlers, env, ctx) {
  await Promise.all(batch.messages.map((message) => settle(message, handlers, env, ctx)));
}

async function settle(message, handlers, env, ctx) {
  try {
    const decoded = await decode(message);
    if (isExpired(decoded, message)) {
      console.warn(`dropped ${nameOf(decoded)} (${message.id}): it has expired`);
      message.ack();
      return;
    }
    const wait = secondsUntil(decoded.task?.eta);
    if (wait > 0) {
      // Its eta was further away than the longest delay, so the message must wait again.
      message.retry({ delaySeconds: Math.min(wait, LONGEST_DELAY) });
      return;
    }
    await handle(decoded, handlers, { message, env, ctx });
    message.ack();
  } catch (error) {
    await fail(message, error, env);
  }
}

async function handle(decoded, handlers, context) {
  const { task } = decoded;
  // Own properties only: every object has a "toString", which is not a task.
  const tasks = handlers.tasks ?? {};
  const handler = task ? Object.hasOwn(tasks, task.name) && tasks[task.name] : handlers.message;
  if (!handler) throw new Reject(`nothing here handles ${nameOf(decoded)}`);
  await handler(task ?? decoded, context);
}

async function fail(message, error, env) {
  console.error(`message ${message.id}, attempt ${message.attempts}: ${error}`);
  const hopeless = error instanceof Reject || error instanceof DecodeError;
  if (hopeless && env.DEAD_LETTERS && (await bury(message, env.DEAD_LETTERS))) {
    message.ack();
  } else {
    // After max_retries of the consumer, the queue itself dead-letters the message.
    message.retry({ delaySeconds: delayOf(error) ?? backOff(message.attempts) });
  }
}

/**
 * The whole seconds that the handler asked for, limited to what a queue accepts; undefined if it
 * asked for none.  The runtime may throw for other values (seen for 1e12 on workerd 2026-10-23),
 * and then redelivers the batch.
 */
function delayOf(error) {
  const seconds = Number(error?.delaySeconds ?? NaN); // a handler may throw any value, also null
  if (Number.isNaN(seconds)) return undefined;
  return Math.ceil(Math.min(Math.max(seconds, 0), LONGEST_DELAY));
}

/** Sends the message unchanged, so that it can be sent back once the fault is fixed. */
async function bury({ id, body }, deadLetters) {
  const contentType =
    typeof body === "string" ? "text" : body instanceof ArrayBuffer ? "bytes" : "json";
  try {
    await deadLetters.send(body, { contentType });
    return true;
  } catch (error) {
    console.error(`message ${id} could not be dead-lettered: ${error}`);
    return false;
  }
}

/** 5, 10, 20 … seconds, at most an hour, plus up to half of that at random, so that messages that
 * failed together are not redelivered together. */
function backOff(attempts) {
  const seconds = Math.min(5 * 2 ** (attempts - 1), 3600);
  return Math.round(seconds * (1 + Math.random() / 2));
}

/** Whole seconds until `eta`, or 0; a queue may deliver a message a moment early. */
function secondsUntil(eta) {
  const seconds = eta ? (eta.getTime() - Date.now()) / 1000 : 0;
  return seconds > 1 ? Math.ceil(seconds) : 0;
}

function nameOf({ task }) {
  return task ? `task ${task.name}` : "a message that is not a Celery task";
}
