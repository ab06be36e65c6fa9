// The numbers of the protocol; docs/hub.md explains them.

export const VERSION = 1;

/** Enough for the largest message, if each of its characters must be escaped. */
export const MAX_FRAME_BYTES = 576 * 1024;
export const MAX_MESSAGE_BYTES = 256 * 1024;
export const MAX_UNACKNOWLEDGED_BYTES = 1024 * 1024;
export const MAX_NAME_BYTES = 255;
/** Maximum sum of the names of a client's queues; its attachment (16 KB) holds them. */
export const MAX_HELD_BYTES = 12 * 1024;
export const MAX_CLIENTS = 5_000;
export const MAX_BINDINGS = 10_000;
export const OPERATIONS_PER_SECOND = 500;
export const OPERATIONS_AT_ONCE = 5_000;
export const KEPT_MESSAGES = 100;
export const KEPT_MS = 60_000;
export const MAX_REPLAYED_BYTES = 256 * 1024;

/** The limits that a welcome tells the client. */
export const LIMITS = {
  frame: MAX_FRAME_BYTES,
  message: MAX_MESSAGE_BYTES,
  unacknowledged: MAX_UNACKNOWLEDGED_BYTES,
};

// Codes with which the hub ends a WebSocket.
export const PROTOCOL_ERROR = 4400;
export const WRONG_VERSION = 4406;
export const TOO_SLOW = 4408;
export const TOO_LARGE = 4413;
export const TOO_MANY_CLIENTS = 4429;
