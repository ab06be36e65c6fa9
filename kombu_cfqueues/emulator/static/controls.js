// Test controls: set faults, advance the clock and reset the request limit by hand.

import { limitOf, usageOf } from "./allowance.js";
import { post, remove } from "./api.js";
import { attempt, field } from "./dialogs.js";
import { el, foreign, list, text } from "./dom.js";

const FAULTS = {
  error: { label: "Error from the API", fields: ["status", "code"] },
  html_page: { label: "HTML error page from the edge", fields: ["status"] },
  lost_response: { label: "Response lost, request performed", fields: [] },
  reset: { label: "Connection reset, request not performed", fields: [] },
  hang: { label: "No response", fields: [] },
  latency: { label: "Slow response", fields: ["seconds"] },
  duplicate: { label: "Messages delivered twice", fields: [], fixedRoutes: true },
  short_batch: { label: "Pull returns few messages", fields: ["most"], fixedRoutes: true },
  late: { label: "Messages appear late", fields: ["seconds"], fixedRoutes: true },
  unsuccessful: { label: "200 with “success”: false", fields: [] },
  empty_body: { label: "Empty body", fields: ["status"] },
  broken_json: { label: "Truncated JSON", fields: [] },
};
const ROUTES = ["push", "batch", "pull", "ack", "list", "create", "get", "metrics", "create_consumer", "list_consumers", "peek", "purge"];
const DEFAULTS = { status: "503", code: "15000", seconds: "2", most: "1" };
const STEPS = { "1 min": 60, "1 h": 3600, "1 day": 86400 };

/** Build the panel; call it once. */
export function prepareControls(panel, refresh) {
  const kind = el("select", {}, ...Object.entries(FAULTS).map(([value, { label }]) => el("option", { value }, label)));
  const route = el("select", {}, el("option", { value: "" }, "any route"), ...ROUTES.map((name) => el("option", { value: name }, name)));
  route.value = "push";
  const times = el("input", { type: "number", min: "1", value: "1" });
  const inputs = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, el("input", { type: "number", min: "0", value })]));
  const labels = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, field(name, input)]));
  const routeField = field("route", route);
  const fit = () => {
    const fault = FAULTS[kind.value];
    for (const [name, label] of Object.entries(labels)) label.hidden = !fault.fields.includes(name);
    routeField.hidden = fault.fixedRoutes === true;
  };
  kind.addEventListener("change", fit);
  const form = el(
    "form",
    { class: "fault-form", novalidate: true },
    field("What goes wrong", kind, null, "field grow"),
    routeField,
    ...Object.values(labels),
    field("times", times),
    el("button", { type: "submit" }, "Set fault"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const sent = { kind: kind.value, times: times.value === "" ? null : Number(times.value) };
    if (!FAULTS[kind.value].fixedRoutes && route.value) sent.routes = [route.value];
    for (const name of FAULTS[kind.value].fields) sent[name] = Number(inputs[name].value);
    await attempt(() => post("/faults", sent), "Fault set");
    await refresh();
  });
  const steps = Object.entries(STEPS).map(([label, seconds]) =>
    el("button", {
      onclick: async () => {
        await attempt(() => post("/clock", { advance: seconds }), `Clock advanced by ${label}`);
        await refresh();
      },
    }, `+${label}`, el("span", { class: "unseen" }, " (advance the clock)")),
  );
  const usage = el("ul", { class: "details usage" });
  const faults = el("ul", { class: "faults", id: "fault-rows" });
  panel.replaceChildren(
    el("h3", {}, "Faults"),
    form,
    faults,
    el("h3", {}, "Clock"),
    el("p", { class: "details" }, "Leases, delays, retention and the request limit follow this clock."),
    el("div", { class: "steps" }, ...steps),
    el("h3", {}, "Request limit"),
    el("p", { class: "details", id: "limit-details" }),
    usage,
    el("button", { class: "quiet", onclick: async () => { await attempt(() => post("/allowance/reset"), "Request count reset"); await refresh(); } }, "Reset the count"),
  );
  fit();
  panel.update = (state) => {
    list(faults, state.faults, (fault) => fault.number, (fault) => makeFault(fault, refresh), form.querySelector("button"));
    list(usage, state.allowances.length > 1 ? state.allowances : [], (one) => one.token, makeUsage);
    text(document.getElementById("limit-details"), limitOf(state.allowance));
  };
}

function makeUsage() {
  const row = el("li", {});
  row.update = (one) => text(row, usageOf(one));
  return row;
}

function makeFault(fault, refresh) {
  const hits = el("span", { class: "hits" });
  const detail = Object.entries(fault.detail).map(([name, value]) => ` ${name} ${Array.isArray(value) ? value.join("–") : value}`).join(",");
  const name = `${fault.kind.replaceAll("_", " ")}${detail} on ${fault.routes.join(", ") || "any route"}`;
  const row = el("li", {}, foreign(el("span", {}), name), hits, el("button", {
    class: "quiet",
    onclick: async () => { await attempt(() => remove(`/faults/${fault.number}`), "Fault removed"); await refresh(); },
  }, "Remove", el("span", { class: "unseen" }, ` the fault ${name}`)));
  row.update = (updated) => text(hits, `applied to ${updated.hits}, ${updated.left === null ? "no limit" : `${updated.left} left`}`);
  return row;
}
