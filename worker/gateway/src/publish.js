// Passes a request's messages to the runtime, and the runtime's refusals to the client.

import { Refusal, success } from "./answers.js";

/**
 * Publishes with one call of the runtime, which accepts all of the messages or none.  With several
 * calls, a failure of the second would also be reported for the messages that the first had sent.
 */
export async function publish(queue, { messages, options }) {
  let sent;
  try {
    sent = await queue.binding.sendBatch(messages, options);
  } catch (error) {
    throw translated(error);
  }
  return success({ metadata: { metrics: metricsOf(sent?.metadata?.metrics) } });
}

export function metricsOf(metrics) {
  return {
    backlog_count: metrics?.backlogCount ?? 0,
    backlog_bytes: metrics?.backlogBytes ?? 0,
    oldest_message_timestamp_ms: Number(metrics?.oldestMessageTimestamp ?? 0),
  };
}

/**
 * The runtime ends its errors with the code that the API would have answered: "Queue is
 * overloaded (10250)".  An error without a code does not tell whether messages were written.  It
 * becomes a 500, which a client repeats, and never a code that means "none was written".
 */
function translated(error) {
  console.error("sendBatch failed:", error.message);
  if (error instanceof RangeError) {
    // The runtime ran out of stack as it serialized the messages, which it does before it sends any.
    return new Refusal(400, 10208, "Request body is nested too deeply");
  }
  const code = Number(/\((\d{5})\)\s*$/.exec(error.message)?.[1] ?? 15000);
  return new Refusal(statusOf(code), code, error.message);
}

function statusOf(code) {
  if (code === 10104) return 404;
  if (code === 10106) return 403;
  if (code === 10204 || code === 10205) return 413;
  if (code >= 10202 && code <= 10208) return 400;
  if (code >= 10250 && code <= 10253) return 429;
  return 500;
}
