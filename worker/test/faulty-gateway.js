// The gateway in front of a queue whose runtime fails: with the text of the message as its error.

import gateway from "../gateway/src/index.js";

const FAULTY = {
  async sendBatch(messages) {
    throw new Error(messages[0].body);
  },
};

export default {
  fetch(request, env) {
    return gateway.fetch(request, { ...env, FAULTY });
  },
};
