// Cloudflare's numbers, from https://developers.cloudflare.com/queues/platform/limits/.
// KB is 1,000 bytes there.

export const MESSAGE_BYTES = 128_000;

/** "~100 bytes" of each message are metadata, which count in addition to its body. */
export const METADATA_BYTES = 100;

export const BATCH_BYTES = 256_000;

export const BATCH_MESSAGES = 100;

export const DELAY_SECONDS = 86_400;

/**
 * A request that is longer cannot hold a batch within the limits: JSON writes a byte of a body as
 * at most six (`\u0000`).  It is refused before it is read into the memory of the Worker.
 */
export const REQUEST_BYTES = 6 * BATCH_BYTES + 1_000 * BATCH_MESSAGES;
