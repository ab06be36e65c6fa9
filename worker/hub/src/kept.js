// The latest commands of remote control, for clients that disconnect for a moment.

import { KEPT_MESSAGES, KEPT_MS } from "./limits.js";

export class Kept {
  constructor(sql) {
    this.sql = sql;
    sql.exec(
      `CREATE TABLE IF NOT EXISTS kept (
         number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER, exchange TEXT, key TEXT, message TEXT
       )`,
    );
    sql.exec("CREATE TABLE IF NOT EXISTS epoch (name TEXT)");
    sql.exec("INSERT INTO epoch SELECT ? WHERE NOT EXISTS (SELECT * FROM epoch)", newEpoch());
    this.epoch = sql.exec("SELECT name FROM epoch").one().name;
    const [row] = sql.exec("SELECT seq FROM sqlite_sequence WHERE name = 'kept'").toArray();
    this.number = row?.seq ?? 0;
  }

  /** Keeps a message, and returns its number. */
  add(exchange, key, message) {
    this.number += 1;
    this.sql.exec(
      "INSERT INTO kept VALUES (?, ?, ?, ?, ?)",
      this.number,
      Date.now(),
      exchange,
      key,
      message,
    );
    this.sql.exec(
      "DELETE FROM kept WHERE number <= ? OR at < ?",
      this.number - KEPT_MESSAGES,
      Date.now() - KEPT_MS,
    );
    return this.number;
  }

  /** The messages of the last minute after `since`, an epoch and a number; newest first. */
  after([epoch, number]) {
    return this.sql
      .exec(
        "SELECT number, exchange, key, message FROM kept WHERE number > ? AND at > ? ORDER BY number DESC",
        epoch === this.epoch ? number : 0,
        Date.now() - KEPT_MS,
      )
      .toArray();
  }
}

function newEpoch() {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 16);
}
