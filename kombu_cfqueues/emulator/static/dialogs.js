// Dialogs: a modal form that Escape closes and that keeps the keyboard focus.

import { el, foreign } from "./dom.js";

/**
 * Show a form in a dialog.
 *
 * @param fields elements between the title and the buttons
 * @param submit called with the form; if it throws, the dialog stays open and shows the error
 */
export function ask({ title, fields, action, danger = false, submit, cancel = "Cancel" }) {
  const problem = el("p", { class: "problem", role: "alert" });
  const heading = el("h2", { id: "dialog-title" }, title);
  const form = el(
    "form",
    { novalidate: true },
    heading,
    ...fields,
    problem,
    el(
      "div",
      { class: "buttons" },
      cancel === null ? null : el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, cancel),
      el("button", { type: "submit", class: danger ? "danger" : "primary" }, action),
    ),
  );
  const dialog = el("dialog", { "aria-labelledby": "dialog-title", onclose: () => gone(dialog) }, form);
  let sending = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (sending) return;
    sending = true;
    try {
      await submit(form);
      dialog.close();
    } catch (error) {
      foreign(problem, error.message);
    } finally {
      sending = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function gone(dialog) {
  dialog.remove();
  // The browser has returned the focus to the button that opened the dialog, unless that is gone too.
  if (document.activeElement === document.body) document.getElementById("queues").focus();
}

let fields = 0;

/** Make a label with its input below, and a hint. */
export function field(label, input, hint = null, kind = "field") {
  input.id = `field-${++fields}`;
  const shown = el("div", { class: kind }, el("label", { for: input.id }, label), input);
  if (hint !== null) {
    input.setAttribute("aria-describedby", `${input.id}-hint`);
    shown.append(el("small", { id: `${input.id}-hint` }, hint));
  }
  return shown;
}

/** Show a short message for some seconds; screen readers announce it. */
export function toast(message, problem = false) {
  const shown = foreign(el("p", { class: problem ? "toast problem" : "toast" }), message);
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), problem ? 8000 : 3500);
}

/** Run the action of a button and show its result or its error. */
export async function attempt(action, done = null) {
  try {
    const result = await action();
    if (done !== null) toast(typeof done === "function" ? done(result) : done);
    return result;
  } catch (error) {
    toast(error.message, true);
    return null;
  }
}
