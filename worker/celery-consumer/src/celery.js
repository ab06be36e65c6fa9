// Celery and Kombu messages in a Worker: what Python published, decoded, and tasks for Python.
// One file without dependencies: copy it into your own Worker, with celery.d.ts beside it.
//
//   decode(message)                    a queue message -> { task, body, headers, deaths, … }
//   isExpired(decoded, message)        whether the sender's time limit has passed
//   encodeTask(name, args, kwargs, …)  a call of a Celery task -> { id, body, options } for send()
//   sendTask(queue, name, args, …)     the same, sent through a queue binding

/** A Worker cannot read the message.  A redelivery would not change that. */
export class DecodeError extends Error {
  name = "DecodeError";
}

/** Longest delay of a queue message, in seconds (Cloudflare's limit: 24 hours). */
const LONGEST_DELAY = 86_400;

/** Default limit of the size of a decompressed body, in bytes. */
const MOST_BYTES = 16 * 1024 * 1024;

// ---------------------------------------------------------------------------------- decoding

export async function decode(message, { maxBytes = MOST_BYTES } = {}) {
  const envelope = envelopeOf(message.body);
  if (!envelope) {
    // From another program, or published with body_format="plain".
    const { body } = message;
    return { body, headers: {}, properties: {}, contentType: null, task: null, deaths: [] };
  }
  const { headers, properties } = envelope;
  const contentType = envelope["content-type"] ?? "application/data";
  const bytes = await decompress(bytesOf(envelope), headers.compression, maxBytes);
  const body = deserialize(bytes, contentType, envelope["content-encoding"]);
  const task = typeof headers.task === "string" ? taskOf(headers, body) : null;
  // Why a dead letter died, the latest death first; kombu_cfqueues and RabbitMQ write it.
  const deaths = Array.isArray(headers["x-death"]) ? headers["x-death"].filter(isObject) : [];
  return { body, headers, properties, contentType, task, deaths };
}

/** Whether the sender's time limit has passed (`expires=` of Celery and of Kombu). */
export function isExpired(decoded, message, now = Date.now()) {
  if (decoded.task?.expires && decoded.task.expires.getTime() <= now) return true;
  // Kombu's is in milliseconds from the moment of publishing.
  const expiration = Number(decoded.properties.expiration ?? Infinity);
  return message.timestamp.getTime() + expiration <= now;
}

/** Kombu's envelope, which is sent as text or, with content_type="json", as an object. */
function envelopeOf(body) {
  let candidate = body;
  if (typeof body === "string" && body.startsWith("{")) {
    try {
      candidate = JSON.parse(body);
    } catch {
      return null; // plain text that begins with a brace
    }
  }
  const isEnvelope =
    isObject(candidate) &&
    typeof candidate.body === "string" &&
    isObject(candidate.headers) &&
    isObject(candidate.properties);
  return isEnvelope ? candidate : null;
}

function bytesOf({ body, properties }) {
  if (properties.body_encoding !== "base64") return new TextEncoder().encode(body);
  try {
    return Uint8Array.fromBase64(body);
  } catch (error) {
    throw new DecodeError(`body is not base64: ${error.message}`);
  }
}

/** Kombu's names of compressions; what it calls gzip is in fact zlib. */
const DECOMPRESSORS = {
  "application/x-gzip": async () => (await import("node:zlib")).inflateSync,
  "application/x-brotli": async () => (await import("node:zlib")).brotliDecompressSync,
  "application/zstd": async () => (await import("node:zlib")).zstdDecompressSync,
};

async function decompress(bytes, compression, maxBytes) {
  if (!compression) return bytes;
  const find = DECOMPRESSORS[compression];
  if (!find) {
    throw new DecodeError(
      `compression ${compression} does not exist in Workers: use zlib, brotli or zstd`,
    );
  }
  const inflate = await find();
  try {
    // A message of 128 KB can hold a body of 128 MB, which is all the memory of a Worker.
    return inflate(bytes, { maxOutputLength: maxBytes });
  } catch (error) {
    throw new DecodeError(`body cannot be decompressed (${compression}): ${error.message}`);
  }
}

function deserialize(bytes, contentType, contentEncoding) {
  if (contentType === "application/json") return parseJson(textOf(bytes, "utf-8"));
  if (contentEncoding && contentEncoding !== "binary") return textOf(bytes, contentEncoding);
  return bytes;
}

function textOf(bytes, encoding) {
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch (error) {
    throw new DecodeError(`body is not ${encoding}: ${error.message}`);
  }
}

function parseJson(text) {
  try {
    return JSON.parse(text, revive);
  } catch (error) {
    // Python also writes NaN and Infinity, which JSON does not have.
    throw new DecodeError(`body is not JSON: ${error.message}`);
  }
}

/**
 * Values that JSON lacks.  Kombu writes them as {"__type__", "__value__"}: bytes become a
 * Uint8Array; datetime, date, time and decimal the text that Python wrote, because a Date has
 * neither microseconds nor "no time zone"; uuid its text.  Integers that a Number would round,
 * such as 64-bit ids, become a BigInt.
 */
function revive(key, value, { source }) {
  if (typeof value === "number") {
    const rounded = Number.isInteger(value) && !Number.isSafeInteger(value);
    return rounded && /^-?\d+$/.test(source) ? BigInt(source) : value;
  }
  const marked = isObject(value) && "__type__" in value && "__value__" in value;
  if (!marked || Object.keys(value).length !== 2) return value;
  const content = value.__value__;
  switch (value.__type__) {
    case "bytes":
      return new TextEncoder().encode(content);
    case "base64":
      return Uint8Array.fromBase64(content);
    case "datetime":
    case "date":
    case "time":
    case "decimal":
      return content;
    case "uuid":
      return content.hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
    default:
      return value; // a type that the sender registered, which the handler reads
  }
}

/** The task of a Celery message (protocol 2: headers, and a body of [args, kwargs, embed]). */
function taskOf(headers, body) {
  if (!Array.isArray(body) || body.length !== 3) {
    throw new DecodeError(
      `task ${headers.task} is not serialized as JSON: set task_serializer = "json"`,
    );
  }
  const [args, kwargs, embed] = body;
  const [timeLimit = null, softTimeLimit = null] = headers.timelimit ?? [];
  return {
    name: headers.task,
    id: headers.id,
    args,
    kwargs,
    eta: dateOf(headers.eta, "eta"),
    expires: dateOf(headers.expires, "expires"),
    retries: headers.retries ?? 0,
    rootId: headers.root_id ?? null,
    parentId: headers.parent_id ?? null,
    groupId: headers.group ?? null,
    timeLimit,
    softTimeLimit,
    ignoreResult: headers.ignore_result ?? false,
    origin: headers.origin ?? null,
    stamps: headers.stamps ?? {},
    callbacks: embed?.callbacks ?? null,
    errbacks: embed?.errbacks ?? null,
    chain: embed?.chain ?? null,
    chord: embed?.chord ?? null,
  };
}

function dateOf(text, header) {
  if (!text) return null;
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) throw new DecodeError(`${header} is not a time: ${text}`);
  return date;
}

// ---------------------------------------------------------------------------------- encoding

export function encodeTask(name, args = [], kwargs = {}, options = {}) {
  const id = options.id ?? crypto.randomUUID();
  const now = options.now ?? Date.now();
  const eta = options.eta ?? (options.countdown ? new Date(now + options.countdown * 1000) : null);
  const expires =
    typeof options.expires === "number"
      ? new Date(now + options.expires * 1000)
      : (options.expires ?? null);

  const headers = {
    lang: "js",
    task: name,
    id,
    shadow: null,
    eta: eta && isoOf(eta),
    expires: expires && isoOf(expires),
    group: null,
    group_index: null,
    retries: 0,
    timelimit: [options.timeLimit ?? null, options.softTimeLimit ?? null],
    root_id: options.rootId ?? id,
    parent_id: options.parentId ?? null,
    argsrepr: shorten(stringify(args)),
    kwargsrepr: shorten(stringify(kwargs)),
    origin: options.origin ?? "worker@cloudflare",
    ignore_result: options.ignoreResult ?? false,
    replaced_task_nesting: 0,
    stamped_headers: null,
    stamps: {},
    ...options.headers,
  };
  const envelope = {
    body: stringify([args, kwargs, { callbacks: null, errbacks: null, chain: null, chord: null }]),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    headers,
    properties: {
      correlation_id: id,
      reply_to: "",
      delivery_mode: 2,
      delivery_info: { exchange: "", routing_key: options.queue ?? "celery" },
      priority: 0,
      body_encoding: "utf-8",
      delivery_tag: crypto.randomUUID(),
      message_id: id,
    },
  };
  return {
    id,
    body: JSON.stringify(envelope),
    options: { contentType: "text", ...delayUntil(eta, now) },
  };
}

export async function sendTask(queue, name, args, kwargs, options) {
  const { id, body, options: sendOptions } = encodeTask(name, args, kwargs, options);
  await queue.send(body, sendOptions);
  return id;
}

/** JSON with Kombu's notation for what JSON lacks: the reverse of `revive`. */
function stringify(value) {
  // The toJSON of a Date runs before the replacer, so read the original from its holder.
  return JSON.stringify(value, function (key, converted) {
    const original = this[key];
    if (original instanceof Date) return { __type__: "datetime", __value__: isoOf(original) };
    if (original instanceof Uint8Array) {
      return { __type__: "base64", __value__: original.toBase64() };
    }
    if (typeof original === "bigint") return JSON.rawJSON(String(original));
    return converted;
  });
}

/** With an offset, because Python before 3.11 does not read the Z. */
function isoOf(date) {
  return date.toISOString().replace("Z", "+00:00");
}

function shorten(text) {
  return text.length > 1024 ? `${text.slice(0, 1021)}...` : text;
}

/**
 * The delay until `eta`, at most the longest of a queue; a Python worker that gets the task early
 * returns it to the queue.  Nothing without an `eta`: a delay of 0 would override the queue's own.
 */
function delayUntil(eta, now) {
  if (!eta) return {};
  const seconds = Math.ceil((eta.getTime() - now) / 1000);
  return { delaySeconds: Math.min(Math.max(seconds, 0), LONGEST_DELAY) };
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}
