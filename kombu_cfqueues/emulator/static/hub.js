// The clients that are connected to the emulator's hub.

import { el, list, text } from "./dom.js";
import { moment } from "./format.js";

/** Show the clients of all namespaces; the panel is hidden while there are none. */
export function showHub(hub) {
  const clients = Object.entries(hub).flatMap(([namespace, { clients }]) =>
    clients.map((client, index) => ({ ...client, namespace, key: `${namespace} ${client.name} ${index}` })),
  );
  document.getElementById("hub").hidden = clients.length === 0;
  list(document.getElementById("hub-rows"), clients, (client) => client.key, makeRow);
}

function makeRow() {
  const name = el("span", {});
  const detail = el("span", { class: "hits" });
  const row = el("li", {}, name, detail);
  row.update = ({ name: own, namespace, queues, connected_at: since }) => {
    text(name, `${own} in ${namespace}`);
    text(detail, `${queues.join(", ") || "no queues"}, since ${moment(since)}`);
  };
  return row;
}
