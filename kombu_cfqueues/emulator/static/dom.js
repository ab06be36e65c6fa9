// Building and updating the page.  Text is always set as text: the content of a queue never becomes
// markup, a script in an attribute, or a URL.

/** Make an element: `el("button", {class: "quiet", onclick: f}, "Clear")`. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an element's text only if it changes, so that a selection in unchanged text survives. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
  return element;
}

// Invisible characters, among them those that reorder the text around them.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/;

/** Set text that anybody may have written: invisible characters are shown by their codes. */
export function foreign(element, value) {
  const wanted = String(value);
  if (element.foreignText === wanted) return element;
  element.foreignText = wanted;
  element.classList.add("foreign");
  element.replaceChildren(...marked(wanted));
  return element;
}

function marked(value) {
  const parts = [];
  let plain = "";
  for (const character of value) {
    if (!HIDDEN.test(character)) {
      plain += character;
      continue;
    }
    const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    parts.push(plain, el("span", { class: "hidden-character", title: "Invisible character" }, code));
    plain = "";
  }
  return [...parts, plain];
}

/** Set an attribute only if it changes; null removes it. */
export function attribute(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * Show `items` as the children of `parent`, one element each.
 *
 * An element stays until its item is gone and moves only if necessary, so that the focus, a selection
 * and an open message survive an update every second.  If the focused element goes, its successor gets
 * the focus, or `whenEmpty` if no element is left.
 *
 * @param keyOf returns the key of an item
 * @param make makes the element of an item; the element has a method `update(item)`
 */
export function list(parent, items, keyOf, make, whenEmpty = null) {
  const focused = [...parent.children].findIndex((child) => child.contains(document.activeElement));
  const keys = new Set(items.map((item) => String(keyOf(item))));
  const old = new Map();
  for (const child of [...parent.children]) {
    if (keys.has(child.key)) old.set(child.key, child);
    else child.remove();
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = old.get(key);
    if (child === undefined) {
      child = make(item);
      child.key = key;
    }
    child.update(item);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
  if (focused >= 0 && !parent.contains(document.activeElement)) {
    const heir = parent.children[Math.min(focused, parent.children.length - 1)];
    (heir?.querySelector("a, button") ?? whenEmpty)?.focus();
  }
}

/** Draw counts of the last minute as lines; the lists in `lines` have the same length. */
export function sparkline(lines) {
  const [width, height] = [96, 22];
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, class: "sparkline", "aria-hidden": "true" });
  const paths = Object.keys(lines).map((name) => svgElement("polyline", { class: name }));
  svg.append(...paths);
  svg.update = (updated) => {
    const max = Math.max(1, ...Object.values(updated).flat());
    Object.values(updated).forEach((values, n) => {
      const step = width / Math.max(1, values.length - 1);
      const points = values.map((v, i) => `${(i * step).toFixed(1)},${(height - 1 - (v / max) * (height - 3)).toFixed(1)}`);
      attribute(paths[n], "points", points.join(" "));
    });
  };
  svg.update(lines);
  return svg;
}

function svgElement(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
