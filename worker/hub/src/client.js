// One connected client.  Its attachment, which outlives hibernation, says which client it is.

import {
  MAX_UNACKNOWLEDGED_BYTES,
  OPERATIONS_AT_ONCE,
  OPERATIONS_PER_SECOND,
  TOO_SLOW,
} from "./limits.js";
import { byteLength } from "./operations.js";

/** Change of the unacknowledged bytes after which the count is written to the attachment. */
const NOTED_BYTES = 64 * 1024;

export class Client {
  constructor(socket) {
    this.socket = socket;
    const known = socket.deserializeAttachment();
    this.name = known?.name ?? null; // null before the greeting
    this.connectedAt = known?.connectedAt ?? Date.now();
    this.queues = new Map(known?.queues); // whether it consumes them, by name
    this.unacknowledged = known?.unacknowledged ?? 0;
    this.noted = this.unacknowledged;
    this.hasEnded = known?.hasEnded ?? false;
    this.outgoing = [];
    this.credit = OPERATIONS_AT_ONCE;
    this.creditedAt = Date.now();
  }

  /** Writes what must outlive hibernation. */
  note() {
    this.noted = this.unacknowledged;
    const { name, connectedAt, unacknowledged, hasEnded } = this;
    this.socket.serializeAttachment({
      name,
      connectedAt,
      unacknowledged,
      hasEnded,
      queues: [...this.queues],
    });
  }

  /** Counts an operation; returns false if the client is too fast. */
  spend() {
    const now = Date.now();
    const earned = ((now - this.creditedAt) / 1000) * OPERATIONS_PER_SECOND;
    this.credit = Math.min(OPERATIONS_AT_ONCE, this.credit + earned) - 1;
    this.creditedAt = now;
    return this.credit >= 0;
  }

  acknowledge(bytes) {
    this.unacknowledged = Math.max(0, this.unacknowledged - Math.max(0, bytes));
    this.noteIfChanged();
  }

  /** Sends what waits in one frame, or disconnects a client that does not read. */
  flush() {
    if (this.outgoing.length === 0 || this.hasEnded) return;
    const frame = JSON.stringify(this.outgoing);
    this.outgoing = [];
    this.unacknowledged += byteLength(frame);
    if (this.unacknowledged > MAX_UNACKNOWLEDGED_BYTES) {
      this.end(TOO_SLOW, `the client has not acknowledged ${this.unacknowledged} bytes`);
      return;
    }
    this.noteIfChanged();
    try {
      this.socket.send(frame);
    } catch {
      this.hasEnded = true; // it has disconnected; webSocketClose will be called
    }
  }

  end(code, reason) {
    this.hasEnded = true;
    try {
      this.note();
      this.socket.close(code, reason.slice(0, 120));
    } catch {
      // it has disconnected
    }
  }

  noteIfChanged() {
    if (Math.abs(this.unacknowledged - this.noted) >= NOTED_BYTES) this.note();
  }
}
