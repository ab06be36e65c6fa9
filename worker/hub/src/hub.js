// One namespace of the hub: a router that stores only the bindings of queues that clients hold, and
// for a minute the commands of remote control.  docs/hub.md describes the protocol.

import { DurableObject } from "cloudflare:workers";
import { Bindings, isControl, isKept, matches, TYPES } from "./bindings.js";
import { Client } from "./client.js";
import { Kept } from "./kept.js";
import {
  LIMITS,
  MAX_BINDINGS,
  MAX_CLIENTS,
  MAX_HELD_BYTES,
  MAX_MESSAGE_BYTES,
  MAX_NAME_BYTES,
  MAX_REPLAYED_BYTES,
  OPERATIONS_PER_SECOND,
  PROTOCOL_ERROR,
  TOO_MANY_CLIENTS,
  VERSION,
  WRONG_VERSION,
} from "./limits.js";
import { byteLength, check, checkedName, heldSize, read, Refusal, Violation } from "./operations.js";

export class Hub extends DurableObject {
  // Runs at the first request, after each hibernation and after each deployment.
  constructor(ctx, env) {
    super(ctx, env);
    this.bindings = new Bindings(ctx.storage.sql);
    this.kept = new Kept(ctx.storage.sql);
    this.life = crypto.randomUUID();
    this.frames = 0;
    this.turn = 0;
    const known = ctx.getWebSockets().map((socket) => new Client(socket));
    this.clients = new Map(known.filter((one) => !one.hasEnded).map((one) => [one.socket, one]));
    // Clients may have disconnected while the object did not exist.
    this.bindings.remove(({ queue }) => !this.isHeld(queue));
  }

  /** Serves a WebSocket, or a GET that asks which clients are connected. */
  fetch(request) {
    if (request.headers.get("Upgrade") !== "websocket") return Response.json(this.describe());
    const [theirs, ours] = Object.values(new WebSocketPair());
    this.ctx.acceptWebSocket(ours);
    const client = new Client(ours);
    if (this.clients.size >= MAX_CLIENTS) {
      client.end(TOO_MANY_CLIENTS, `the hub has ${MAX_CLIENTS} clients`);
    } else {
      this.clients.set(ours, client);
    }
    return new Response(null, { status: 101, webSocket: theirs });
  }

  webSocketMessage(socket, frame) {
    const client = this.clients.get(socket);
    if (client === undefined || client.hasEnded) return;
    this.frames += 1;
    try {
      for (const operation of read(frame)) this.perform(client, operation);
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      client.flush();
      client.end(error.code, error.message);
    }
    this.flush();
  }

  webSocketClose(socket) {
    const client = this.clients.get(socket);
    if (client === undefined) return;
    client.end(1000, "");
    this.flush();
  }

  webSocketError(socket) {
    this.webSocketClose(socket);
  }

  /** Sends what waits, and forgets ended clients: one that hangs never confirms its end. */
  flush() {
    let clients = [...this.clients.values()];
    while (clients.length > 0) {
      for (const client of clients) client.flush();
      const ended = clients.filter((client) => client.hasEnded);
      for (const client of ended) this.clients.delete(client.socket);
      for (const client of ended) {
        for (const queue of client.queues.keys()) this.letGo(client, queue);
      }
      // The other clients learn which exchanges have no listeners any more.
      clients = ended.length > 0 ? [...this.clients.values()] : [];
    }
  }

  perform(client, operation) {
    check(operation);
    const [name, ...given] = operation;
    if ((client.name !== null) === (name === "hello")) {
      throw new Violation(
        PROTOCOL_ERROR,
        "the first operation, and only that, must be a hello",
      );
    }
    if (name === "hello") return this.hello(client, ...given);
    if (name === "ack") return client.acknowledge(...given);
    const request = given.pop();
    try {
      if (!client.spend()) {
        throw new Refusal("too-fast", `over ${OPERATIONS_PER_SECOND} operations per second`);
      }
      const value = this[name](client, ...given) ?? null;
      if (request !== null) client.outgoing.push(["ok", request, value]);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      client.outgoing.push(["error", request, error.code, error.message]);
    }
  }

  // Operations

  hello(client, version, name) {
    if (version !== VERSION) {
      throw new Violation(WRONG_VERSION, `the hub speaks version ${VERSION}, not ${version}`);
    }
    client.name = name.slice(0, MAX_NAME_BYTES);
    client.note();
    client.outgoing.push(["welcome", VERSION, [...this.bindings.listened()].sort(), LIMITS]);
  }

  declare(client, queue) {
    if (client.queues.has(queue)) return;
    const held = [...client.queues.keys(), checkedName(queue)];
    if (held.reduce((sum, name) => sum + heldSize(name), 0) > MAX_HELD_BYTES) {
      throw new Refusal("too-many", "the client holds too many queues");
    }
    client.queues.set(queue, false);
    client.note();
  }

  delete(client, queue) {
    if (client.queues.has(queue)) this.letGo(client, queue);
  }

  consume(client, queue, consumes) {
    if (!client.queues.has(queue)) return;
    client.queues.set(queue, consumes);
    client.note();
  }

  bind(client, queue, exchange, type, key, since) {
    if (!TYPES.includes(type)) {
      throw new Refusal("type", `the type must be one of ${TYPES.join(", ")}`);
    }
    if (!client.queues.has(queue)) {
      throw new Refusal("not-held", "the client has not declared the queue");
    }
    const binding = { queue, exchange: checkedName(exchange), type, key: checkedName(key) };
    const existing = this.bindings.typeOf(exchange);
    if (existing !== undefined && existing !== type) {
      throw new Refusal("type", `the exchange is of type ${existing}, not ${type}`);
    }
    if (this.bindings.size >= MAX_BINDINGS) {
      throw new Refusal("too-many", `the hub has ${MAX_BINDINGS} bindings`);
    }
    this.bindings.add(binding);
    if (existing === undefined && !isControl(exchange)) this.tell(["listened", exchange, true]);
    if (since !== null && isKept(exchange)) this.replay(client, binding, since);
    return [this.kept.epoch, this.kept.number];
  }

  unbind(_, queue, exchange, key) {
    this.remove((row) => row.queue === queue && row.exchange === exchange && row.key === key);
  }

  publish(_, exchange, key, message) {
    checkedName(exchange);
    checkedName(key);
    if (byteLength(message) > MAX_MESSAGE_BYTES) {
      throw new Refusal("too-large", `a message is larger than ${MAX_MESSAGE_BYTES} bytes`);
    }
    const number = isKept(exchange) ? this.kept.add(exchange, key, message) : null;
    const targets = new Map();
    for (const queue of this.bindings.route(exchange, key)) {
      const holder = this.holder(queue);
      if (holder !== undefined) targets.set(holder, [...(targets.get(holder) ?? []), queue]);
    }
    for (const [holder, queues] of targets) {
      holder.outgoing.push(["message", queues, exchange, key, message, number]);
    }
  }

  find(_, exchange, key) {
    return exchange === "" ? this.isHeld(key) : this.bindings.typeOf(exchange) !== undefined;
  }

  // Routing

  isHeld(queue) {
    for (const client of this.clients.values()) if (client.queues.has(queue)) return true;
    return false;
  }

  /** The client that gets the next message of a queue: one that consumes it, else one that holds it. */
  holder(queue) {
    const holders = [...this.clients.values()].filter((client) => client.queues.has(queue));
    const consumers = holders.filter((client) => client.queues.get(queue));
    const candidates = consumers.length > 0 ? consumers : holders.slice(0, 1);
    return candidates[this.turn++ % candidates.length];
  }

  replay(client, binding, since) {
    const found = [];
    let left = MAX_REPLAYED_BYTES;
    for (const { number, exchange, key, message } of this.kept.after(since)) {
      if (exchange === binding.exchange && matches(binding, key)) {
        left -= byteLength(message);
        if (left < 0) break;
        found.push(["message", [binding.queue], exchange, key, message, number]);
      }
    }
    client.outgoing.push(...found.reverse());
  }

  letGo(client, queue) {
    client.queues.delete(queue);
    if (this.clients.has(client.socket)) client.note();
    if (!this.isHeld(queue)) this.remove((row) => row.queue === queue);
  }

  remove(isGone) {
    const before = this.bindings.listened();
    this.bindings.remove(isGone);
    const after = this.bindings.listened();
    for (const exchange of before) if (!after.has(exchange)) this.tell(["listened", exchange, false]);
  }

  tell(operation) {
    for (const client of this.clients.values()) {
      if (client.name !== null) client.outgoing.push(operation);
    }
  }

  describe() {
    return {
      clients: [...this.clients.values()].map((client) => ({
        name: client.name ?? "",
        connected_at: Math.floor(client.connectedAt / 1000),
        queues: [...client.queues.keys()].sort(),
        unacknowledged: client.unacknowledged,
      })),
      bindings: this.bindings.size,
      frames: this.frames,
      life: this.life,
    };
  }
}
