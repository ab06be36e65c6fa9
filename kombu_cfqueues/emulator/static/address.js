// The address states what the page shows, so that a reload, a link and the back button keep it:
// "#/queues/ID?state=ready&sort=oldest&text=ü&page=9-9&open=12.10&request=3".

/** Return the id of the selected queue (null if none) and the parameters of the address. */
export function read() {
  const [path, query] = location.hash.split("?");
  return {
    queue: path.match(/^#\/queues\/([0-9a-f]{32})$/)?.[1] ?? null,
    params: new URLSearchParams(query ?? ""),
  };
}

/** Return a parameter; "" if the address lacks it. */
export const param = (name) => read().params.get(name) ?? "";

/** Return a parameter that holds numbers, such as those of the open messages. */
export const numbers = (name) => param(name).split(".").filter((part) => /^\d{1,15}$/.test(part)).map(Number);

/** Change parameters; "" removes one.  `fresh` lets the back button undo the change. */
export function change(changes, { fresh = false } = {}) {
  const { queue, params } = read();
  for (const [name, value] of Object.entries(changes)) {
    if (value === "") params.delete(name);
    else params.set(name, value);
  }
  go(queue, params, fresh);
}

/** Select a queue, or none; forget the parameters for the messages of the previous queue. */
export function select(queue) {
  const { params } = read();
  for (const name of ["state", "sort", "text", "page", "open"]) params.delete(name);
  go(queue, params, true);
}

/** Return the address that selects a queue, for a link. */
export const ofQueue = (queue) => `#/queues/${queue}`;

function go(queue, params, fresh) {
  const query = params.toString();
  const hash = `#/${queue === null ? "" : `queues/${queue}`}${query === "" ? "" : `?${query}`}`;
  if (hash === location.hash) return;
  if (fresh) location.hash = hash;
  else history.replaceState(null, "", hash);
}
