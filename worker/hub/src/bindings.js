// The bindings of the queues that connected clients hold, in SQLite: they outlive hibernation.

export const TYPES = ["direct", "topic", "fanout"];

export class Bindings {
  constructor(sql) {
    this.sql = sql;
    sql.exec(
      `CREATE TABLE IF NOT EXISTS bindings (
         exchange TEXT, queue TEXT, key TEXT, type TEXT, PRIMARY KEY (exchange, queue, key)
       ) WITHOUT ROWID`,
    );
    // Reading rows is billed, and each message needs them: read them once per life of the object.
    this.rows = sql.exec("SELECT exchange, queue, key, type FROM bindings").toArray();
  }

  get size() {
    return this.rows.length;
  }

  /** Adds a binding, unless it exists. */
  add(binding) {
    const { exchange, queue, key, type } = binding;
    const same = (row) => row.exchange === exchange && row.queue === queue && row.key === key;
    if (this.rows.some(same)) return;
    this.sql.exec("INSERT INTO bindings VALUES (?, ?, ?, ?)", exchange, queue, key, type);
    this.rows.push(binding);
  }

  /** Removes the bindings of which `isGone` is true. */
  remove(isGone) {
    for (const { exchange, queue, key } of this.rows.filter(isGone)) {
      this.sql.exec(
        "DELETE FROM bindings WHERE exchange = ? AND queue = ? AND key = ?",
        exchange,
        queue,
        key,
      );
    }
    this.rows = this.rows.filter((row) => !isGone(row));
  }

  /** The type of an exchange that a queue is bound to; else undefined. */
  typeOf(exchange) {
    return this.rows.find((row) => row.exchange === exchange)?.type;
  }

  /** The queues that get a message. */
  route(exchange, key) {
    if (exchange === "") return [key];
    const found = this.rows.filter((row) => row.exchange === exchange && matches(row, key));
    return [...new Set(found.map((row) => row.queue))];
  }

  /** The exchanges that a queue is bound to, except those of remote control. */
  listened() {
    return new Set(this.rows.map((row) => row.exchange).filter((name) => !isControl(name)));
  }
}

export function matches(binding, key) {
  if (binding.type === "topic") return topicMatches(binding.key, key);
  return binding.type === "fanout" || binding.key === key;
}

/** Whether an exchange is one of remote control, to which clients always send. */
export function isControl(exchange) {
  return exchange.endsWith(".pidbox");
}

/** Whether messages of an exchange are kept for a minute: commands are, replies are not. */
export function isKept(exchange) {
  return isControl(exchange) && !exchange.startsWith("reply.");
}

/** In a topic, `*` is one word, and `#` any number of words. */
function topicMatches(pattern, key) {
  const words = key.split(".");
  let reached = new Set([0]); // how many words of the key the pattern may have matched so far
  for (const part of pattern.split(".")) {
    const next = new Set();
    if (part === "#") {
      for (let n = Math.min(...reached, words.length + 1); n <= words.length; n++) next.add(n);
    } else {
      for (const n of reached) {
        if (n < words.length && (part === "*" || part === words[n])) next.add(n + 1);
      }
    }
    reached = next;
  }
  return reached.has(words.length);
}
