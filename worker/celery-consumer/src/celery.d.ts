/** Values of a task's arguments.  See `Decoded.body` for how Python's own types arrive. */
export type Value =
  null | boolean | number | bigint | string | Uint8Array | Value[] | { [key: string]: Value };

/** The parts of a queue message that are read; Cloudflare's `Message` has them. */
export interface QueueMessage {
  readonly body: unknown;
  readonly timestamp: Date;
}

/** A Celery task: protocol 2, serialized as JSON. */
export interface Task {
  name: string;
  id: string;
  args: Value[];
  kwargs: { [name: string]: Value };
  /** The task must not run before this moment. */
  eta: Date | null;
  /** The task must not run from this moment on. */
  expires: Date | null;
  /** How often Celery has retried the task; deliveries by the queue are `message.attempts`. */
  retries: number;
  rootId: string | null;
  parentId: string | null;
  groupId: string | null;
  /** Hard limit of its run time, in seconds. */
  timeLimit: number | null;
  /** Soft limit of its run time, in seconds. */
  softTimeLimit: number | null;
  ignoreResult: boolean;
  /** The sender: process id and host. */
  origin: string | null;
  stamps: { [name: string]: unknown };
  /** Signatures to send when the task has succeeded (`link`) or failed (`link_error`). */
  callbacks: unknown[] | null;
  errbacks: unknown[] | null;
  chain: unknown[] | null;
  chord: unknown;
}

/** Why kombu_cfqueues dead-lettered a message; another writer may leave parts out. */
export interface Death {
  /** The queue that it died in, by its name at Cloudflare. */
  queue: string;
  /** `rejected`, `undecodable`, or `delivery_limit`: it was given back too often. */
  reason: string;
  /** How often it died there for that reason. */
  count: number;
  /** Class of the exception, with its module; empty if there was none. */
  exception: string;
  /** The exception's text, at most 500 characters. */
  text: string;
  /** The worker, such as `celery@host`, or its machine. */
  hostname: string;
  /** The delivery that was its last; null if the queue did not say. */
  attempts: number | null;
  /** When, in ISO 8601. */
  time: string;
}

export interface Decoded {
  /**
   * The message's body.  JSON is parsed, with bytes as `Uint8Array`, integers past 2^53 as
   * `bigint`, and datetime, date, time, decimal and uuid as the text that Python wrote.  Other
   * text is a string, anything else a `Uint8Array`.  A message without Kombu's envelope: its
   * body as the queue delivered it.
   */
  body: unknown;
  headers: { [name: string]: any };
  /** Kombu's: `correlation_id`, `reply_to`, `delivery_info`, `message_id`, … */
  properties: { [name: string]: any };
  /** For example `application/json`; null for a message without Kombu's envelope. */
  contentType: string | null;
  /** Null if the message is not a Celery task. */
  task: Task | null;
  /** Why a dead letter died, the latest death first; empty for any other message. */
  deaths: Death[];
}

export interface DecodeOptions {
  /** Maximum size of a decompressed body, in bytes.  Default: 16 MiB. */
  maxBytes?: number;
}

export interface EncodeOptions {
  /** The task's id.  Default: a new UUID. */
  id?: string;
  /** Seconds until the task may run. */
  countdown?: number;
  /** When the task may run; takes the place of `countdown`. */
  eta?: Date;
  /** When the task expires: a moment, or seconds from now. */
  expires?: Date | number;
  /** Hard limit of its run time, in seconds. */
  timeLimit?: number;
  /** Soft limit of its run time, in seconds. */
  softTimeLimit?: number;
  /** The queue's name, which Celery shows as routing key.  Default: "celery". */
  queue?: string;
  rootId?: string;
  parentId?: string;
  ignoreResult?: boolean;
  origin?: string;
  /** More message headers, or others in place of those above. */
  headers?: { [name: string]: unknown };
  /** Milliseconds since 1970 that `countdown` and `expires` count from.  Default: now. */
  now?: number;
}

export interface EncodedTask {
  id: string;
  /** The message's text. */
  body: string;
  /** The second argument of `queue.send`. */
  options: { contentType: "text"; delaySeconds?: number };
}

/** What may be sent as an argument: `Value`, and a `Date`, which Python gets as a datetime. */
export type Argument =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | Date
  | readonly Argument[]
  | { readonly [key: string]: Argument };

/** A Worker cannot read the message.  A redelivery would not change that. */
export class DecodeError extends Error {}

/**
 * Decodes a message that kombu_cfqueues published, or passes on what another program sent.
 *
 * Compressed bodies (zlib, brotli, zstd) need the compatibility flag `nodejs_compat`.
 *
 * @throws {DecodeError} for a broken body, an unknown compression, or a Celery task that is not
 *   serialized as JSON.
 */
export function decode(
  message: Pick<QueueMessage, "body">,
  options?: DecodeOptions,
): Promise<Decoded>;

/** Whether the sender's time limit has passed (`expires=` of Celery and of Kombu). */
export function isExpired(decoded: Decoded, message: QueueMessage, now?: number): boolean;

/** Encodes a call of a Celery task, for `queue.send(body, options)`. */
export function encodeTask(
  name: string,
  args?: readonly Argument[],
  kwargs?: { readonly [name: string]: Argument },
  options?: EncodeOptions,
): EncodedTask;

/** Calls a Celery task through a queue binding, and returns the task's id. */
export function sendTask(
  queue: { send(body: string, options?: EncodedTask["options"]): Promise<unknown> },
  name: string,
  args?: readonly Argument[],
  kwargs?: { readonly [name: string]: Argument },
  options?: EncodeOptions,
): Promise<string>;
