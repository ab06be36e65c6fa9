// The dialog that publishes a message.

import { post, Written } from "./api.js";
import { ask, field, toast } from "./dialogs.js";
import { el } from "./dom.js";

/** Show the dialog for a message to `queue`; `renew` is called once it is published. */
export function publish(queue, renew) {
  const kind = el(
    "select",
    {},
    el("option", { value: "celery" }, "Celery task"),
    el("option", { value: "json" }, "JSON"),
    el("option", { value: "text" }, "Text"),
  );
  const task = el("input", { autocomplete: "off", spellcheck: "false", placeholder: "shop.tasks.send_receipt" });
  const args = el("textarea", { rows: "2", spellcheck: "false" }, "[]");
  const kwargs = el("textarea", { rows: "2", spellcheck: "false" }, "{}");
  const body = el("textarea", { rows: "6", spellcheck: "false" });
  const delay = el("input", { type: "number", min: "0", max: "86400", placeholder: "the queue’s own" });
  const forTask = [field("Task", task), field("Arguments, as JSON", args), field("Keyword arguments, as JSON", kwargs)];
  const forBody = [field("Body", body)];
  const fit = () => {
    for (const input of forTask) input.hidden = kind.value !== "celery";
    for (const input of forBody) input.hidden = kind.value === "celery";
    if (kind.value === "json" && body.value === "") body.value = "{\n  \"greeting\": \"hello\"\n}";
  };
  kind.addEventListener("change", fit);
  ask({
    title: `Publish to ${queue.name}`,
    action: "Publish",
    fields: [field("What", kind), ...forTask, ...forBody, field("Delay in seconds", delay)],
    submit: async () => {
      const sent = { kind: kind.value };
      if (delay.value !== "") sent.delay_seconds = Number(delay.value);
      if (kind.value === "celery") {
        Object.assign(sent, { task: task.value.trim(), args: written(args, "The arguments"), kwargs: written(kwargs, "The keyword arguments") });
      } else sent.body = kind.value === "json" ? written(body, "The body") : body.value;
      await post(`/queues/${queue.id}/messages`, sent);
      toast("Published");
      await renew();
    },
  });
  fit();
}

/** Check that an input holds JSON, and return it as it is written. */
function written(input, name) {
  try {
    JSON.parse(input.value);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
  return new Written(input.value);
}
