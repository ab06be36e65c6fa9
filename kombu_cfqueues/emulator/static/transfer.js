// Export and import of a queue's messages as JSON lines.

import { download, postLines } from "./api.js";
import { ask, attempt, field, toast } from "./dialogs.js";
import { el } from "./dom.js";
import { bytes, count } from "./format.js";

const MOST_BYTES = 64_000_000;

/** Download all messages of `queue`. */
export async function exportMessages(queue) {
  const file = await attempt(() => download(`/queues/${queue.id}/export`));
  if (file === null) return;
  const url = URL.createObjectURL(file);
  el("a", { href: url, download: `${queue.name}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  toast(file.size === 0 ? `${queue.name} has no messages: the file is empty` : `Exported ${bytes(file.size)} to ${queue.name}.jsonl`);
}

/** Show the dialog that publishes the messages of a file to `queue`. */
export function importMessages(queue, renew) {
  const file = el("input", { type: "file", accept: ".jsonl,.ndjson,application/x-ndjson" });
  ask({
    title: `Import into ${queue.name}`,
    action: "Import",
    fields: [
      el("p", {}, "Each line is a message, as “Export” writes it: an object with a body. All of the file is published, or nothing."),
      field("File with JSON lines", file),
    ],
    submit: async () => {
      const [chosen] = file.files;
      if (chosen === undefined) throw new Error("Choose a file.");
      if (chosen.size > MOST_BYTES) throw new Error(`The file has ${bytes(chosen.size)}; the page imports at most ${bytes(MOST_BYTES)}. Use: cfqueues emulator import ${queue.name} FILE`);
      const { published } = await postLines(`/queues/${queue.id}/import`, chosen);
      toast(`Imported ${count(published, "message")}`);
      await renew();
    },
  });
}
