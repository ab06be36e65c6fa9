// An example: a Worker that runs Celery tasks.  Replace the handlers with your own.

import { sendTask } from "./celery.js";
import { consume, Reject, Retry } from "./consume.js";

const handlers = {
  tasks: {
    // Python: render_receipt.delay(17, currency="EUR")
    async "shop.tasks.render_receipt"(task, { env }) {
      const [order] = task.args;
      const { currency = "USD" } = task.kwargs;
      const receipt = `Order ${order}, to be paid in ${currency}`;
      // And back: a Celery worker runs this one.
      await sendTask(
        env.PYTHON,
        "shop.tasks.receipt_rendered",
        [order, receipt],
        {},
        {
          rootId: task.rootId,
          parentId: task.id,
        },
      );
    },

    // Python: call_webhook.delay("https://example.com/hook", {"order": 17})
    async "shop.tasks.call_webhook"(task) {
      const [url, payload] = task.args;
      const response = await fetch(url, { method: "POST", body: JSON.stringify(payload) });
      if (response.status === 429 || response.status === 503) {
        throw new Retry(Number(response.headers.get("Retry-After")) || 60, "the hook is busy");
      }
      if (response.status >= 400 && response.status < 500) {
        throw new Reject(`the hook answered ${response.status}`);
      }
      if (!response.ok) throw new Error(`the hook answered ${response.status}`); // backs off
    },
  },

  // Messages that are not Celery tasks, for example from kombu.Producer.publish({"page": "/"}).
  async message(decoded) {
    console.log("message:", decoded.body);
  },
};

export default {
  async queue(batch, env, ctx) {
    await consume(batch, handlers, env, ctx);
  },
};
