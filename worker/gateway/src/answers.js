// Answers in the form of Cloudflare's API: one envelope for success and failure.

/** A refusal.  `status` and `code` are those of the API; `pointer` names the faulty field. */
export class Refusal extends Error {
  constructor(status, code, message, pointer) {
    super(message);
    this.status = status;
    this.code = code;
    this.pointer = pointer;
  }
}

export function success(result, resultInfo) {
  const envelope = { success: true, errors: [], messages: [], result };
  if (resultInfo) envelope.result_info = resultInfo;
  return Response.json(envelope);
}

export function failure({ status, code, message, pointer }) {
  const error = pointer ? { code, message, source: { pointer } } : { code, message };
  return Response.json({ success: false, errors: [error], messages: [], result: null }, { status });
}
