// The operations of the protocol: what their arguments look like, and how a frame is read.

import { PROTOCOL_ERROR, TOO_LARGE, MAX_FRAME_BYTES, MAX_NAME_BYTES } from "./limits.js";

/** The client broke the protocol or a limit, and is disconnected. */
export class Violation extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** One operation is refused. */
export class Refusal extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

const number = Number.isSafeInteger;
const text = (value) => typeof value === "string";
const flag = (value) => typeof value === "boolean";
const request = (value) => value === null || number(value);
const since = (value) =>
  value === null ||
  (Array.isArray(value) && value.length === 2 && text(value[0]) && number(value[1]));

/** The arguments of each operation of a client. */
const SHAPES = new Map([
  ["hello", [number, text]],
  ["ack", [number]],
  ["declare", [text, request]],
  ["delete", [text, request]],
  ["consume", [text, flag, request]],
  ["bind", [text, text, text, text, since, request]],
  ["unbind", [text, text, text, request]],
  ["publish", [text, text, text, request]],
  ["find", [text, text, request]],
]);

/** Returns the operations of a frame. */
export function read(frame) {
  const size = typeof frame === "string" ? byteLength(frame) : frame.byteLength;
  if (size > MAX_FRAME_BYTES) {
    throw new Violation(TOO_LARGE, `a frame is larger than ${MAX_FRAME_BYTES} bytes`);
  }
  let operations;
  try {
    operations = JSON.parse(typeof frame === "string" ? frame : new TextDecoder().decode(frame));
  } catch {
    operations = null;
  }
  if (!Array.isArray(operations)) {
    throw new Violation(PROTOCOL_ERROR, "a frame is not a JSON array of operations");
  }
  return operations;
}

/** Checks the name and the arguments of an operation. */
export function check(operation) {
  const [name, ...given] = Array.isArray(operation) ? operation : [];
  const shape = SHAPES.get(name);
  if (shape?.length !== given.length || !shape.every((fits, index) => fits(given[index]))) {
    throw new Violation(PROTOCOL_ERROR, "an operation is unknown, or has wrong arguments");
  }
}

/** Returns a name that is not too long. */
export function checkedName(name) {
  if (byteLength(name) > MAX_NAME_BYTES) {
    throw new Refusal("name", `a name is longer than ${MAX_NAME_BYTES} bytes`);
  }
  return name;
}

/** The bytes of a queue's name in an attachment, which stores ASCII or UTF-16. */
export function heldSize(name) {
  return 16 + (byteLength(name) === name.length ? name.length : 2 * name.length);
}

const encoder = new TextEncoder();

export function byteLength(text) {
  return encoder.encode(text).byteLength;
}
