// Reads a publishing request, and checks it in full before anything is sent.

import { Refusal } from "./answers.js";
import {
  BATCH_BYTES,
  BATCH_MESSAGES,
  DELAY_SECONDS,
  MESSAGE_BYTES,
  METADATA_BYTES,
  REQUEST_BYTES,
} from "./limits.js";

/** `{"body": …, "content_type"?: …, "delay_seconds"?: …}` as arguments of `sendBatch`. */
export async function readMessage(request) {
  const payload = await readJson(request);
  const message = readOne(payload, "");
  // The API has this rule for this route, but not for batches.
  if (
    message.contentType === "json" &&
    (message.body === null || typeof message.body !== "object")
  ) {
    throw new Refusal(400, 10207, "Expected object or array, under content_type 'json'", "/body");
  }
  return { messages: [message], options: {} };
}

/** `{"messages": […], "delay_seconds"?: …}` as arguments of `sendBatch`. */
export async function readBatch(request) {
  const payload = await readJson(request);
  if (!Array.isArray(payload?.messages)) {
    throw new Refusal(400, 10013, "Expected an array of messages", "/messages");
  }
  const count = payload.messages.length;
  if (count < 1 || count > BATCH_MESSAGES) {
    throw new Refusal(
      400,
      10206,
      `Expected 1 to ${BATCH_MESSAGES} messages, received ${count}`,
      "/messages",
    );
  }
  const options = readDelay(payload, 10202, "");
  const messages = payload.messages.map((message, index) => readOne(message, `/messages/${index}`));
  const bytes = messages.reduce((sum, message) => sum + sizeOf(message) + METADATA_BYTES, 0);
  if (bytes > BATCH_BYTES) {
    throw new Refusal(413, 10205, `Batch of ${bytes} bytes exceeds ${BATCH_BYTES}`, "/messages");
  }
  return { messages, options };
}

async function readJson(request) {
  const bytes = await readBytes(request);
  try {
    // Strict, because silently replacing a byte would change the message.
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new Refusal(400, 10208, `Request body is not JSON: ${error.message}`);
  }
}

/** Reads the body until it is too long: a chunked body does not state its length. */
async function readBytes(request) {
  const tooLong = new Refusal(413, 10205, `Request exceeds ${REQUEST_BYTES} bytes`);
  if (Number(request.headers.get("Content-Length")) > REQUEST_BYTES) throw tooLong;
  const chunks = [];
  let length = 0;
  for await (const chunk of request.body ?? []) {
    length += chunk.length;
    if (length > REQUEST_BYTES) throw tooLong;
    chunks.push(chunk);
  }
  return new Blob(chunks).arrayBuffer();
}

function readOne(payload, pointer) {
  if (payload === null || typeof payload !== "object" || payload.body === undefined) {
    throw new Refusal(400, 10207, "Expected an object with a 'body'", pointer);
  }
  const { content_type: contentType = "json" } = payload;
  if (contentType !== "text" && contentType !== "json") {
    throw new Refusal(
      400,
      10203,
      "content_type must be 'text' or 'json'",
      `${pointer}/content_type`,
    );
  }
  if (contentType === "text" && typeof payload.body !== "string") {
    throw new Refusal(400, 10207, "Expected string, under content_type 'text'", `${pointer}/body`);
  }
  if (contentType === "text" && payload.body.includes("\0")) {
    // The runtime silently cuts a text off at its first NUL (seen on workerd 2026-10-23).
    throw new Refusal(400, 10207, "text with a NUL cannot be sent", `${pointer}/body`);
  }
  if (contentType === "text" && !payload.body.isWellFormed()) {
    // The runtime would silently replace the half pair with U+FFFD.
    throw new Refusal(400, 10207, "text with half a surrogate pair is invalid", `${pointer}/body`);
  }
  const message = { body: payload.body, contentType, ...readDelay(payload, 10203, pointer) };
  const bytes = sizeOf(message) + METADATA_BYTES;
  if (bytes > MESSAGE_BYTES) {
    throw new Refusal(
      413,
      10204,
      `Message of ${bytes} bytes exceeds ${MESSAGE_BYTES}`,
      `${pointer}/body`,
    );
  }
  return message;
}

/** Nothing if no delay was given: then the queue's own applies, which 0 would override. */
function readDelay(payload, code, pointer) {
  const seconds = payload.delay_seconds;
  if (seconds === undefined) return {};
  if (typeof seconds !== "number" || seconds < 0 || seconds > DELAY_SECONDS) {
    throw new Refusal(
      400,
      code,
      `delay_seconds must be a number from 0 to ${DELAY_SECONDS}`,
      `${pointer}/delay_seconds`,
    );
  }
  return { delaySeconds: Math.trunc(seconds) };
}

function sizeOf({ body, contentType }) {
  const text = contentType === "text" ? body : JSON.stringify(body);
  return new TextEncoder().encode(text).length;
}
