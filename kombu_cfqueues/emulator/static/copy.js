// Copying to the clipboard.

import { toast } from "./dialogs.js";
import { el } from "./dom.js";

/** Make a button that copies a text. */
export const copyButton = (label, text, what) => el("button", { class: "quiet copy", onclick: () => copy(text, what) }, label);

/** Show text with a button that copies it. */
export const copyBlock = (text, what) => el("div", { class: "copy-block" }, el("pre", { tabindex: "0" }, el("code", {}, text.trimEnd())), copyButton(`Copy ${what}`, text, what));

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers have a clipboard only for pages from this machine or over TLS; this works elsewhere.
    const focused = document.activeElement;
    const area = el("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    if (!copied) return toast("The browser did not let the page copy", true);
  }
  toast(`Copied ${what}`);
}
