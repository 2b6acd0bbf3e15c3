/** Settings of the cloud teacher: off until a person fills this in; nothing is ever sent from here. */

import { call, get } from "../api.js";
import { button, fill, h } from "../dom.js";
import { size, when } from "../i18n.js";
import { icon } from "../icons.js";
import { attempt, notice } from "../notices.js";
import { store } from "../store.js";
import { block, labelled } from "./form.js";

/** @typedef {import("../types.js").Cloud} Cloud */
/** @typedef {import("../types.js").CloudLogEntry} CloudLogEntry */

/** Build the section. */
export function cloudSection() {
  const element = h("div", {}, block("cloud.title", "cloud.text"));
  if (store.app.policy.cloud === "forbidden") {
    element.append(policyNotice("policy.cloud"));
    return element;
  }
  const form = h("div");
  const log = h("div");
  element.append(form, log);
  const refresh = async () => {
    const cloud = await attempt(() => get("/api/cloud"));
    if (cloud) fill(form, configuration(cloud, refresh));
    const entries = await attempt(() => get("/api/cloud/log"));
    if (entries) fill(log, logBlock(entries));
  };
  refresh();
  return element;
}

/**
 * What the organisation's policy says about something.
 * @param {string} words
 */
export function policyNotice(words) {
  return h(
    "p",
    { class: "note" },
    icon("lock"),
    h(
      "span",
      {},
      h("span", { t: words }),
      " ",
      h("span", { class: "hint", t: ["policy.source", { file: store.app.policy.source }] }),
    ),
  );
}

/**
 * @param {Cloud} cloud
 * @param {() => void} refresh
 */
function configuration(cloud, refresh) {
  const name = h("input", {
    class: "field",
    type: "text",
    required: true,
    value: cloud.name ?? "",
  });
  const url = h("input", {
    class: "field",
    type: "url",
    required: true,
    value: cloud.base_url ?? "",
    placeholder: "https://",
  });
  const model = h("input", {
    class: "field",
    type: "text",
    required: true,
    value: cloud.model ?? "",
  });
  const key = h("input", { class: "field", type: "password", autocomplete: "off" });
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const data = {
      name: name.value,
      base_url: url.value,
      model: model.value,
      ...(key.value ? { key: key.value } : {}),
    };
    const done = await attempt(async () => {
      await call("PUT", "/api/cloud", data);
      return true;
    });
    if (done) notice("cloud.saved");
    refresh();
  };
  const off = async () => {
    await attempt(() => call("DELETE", "/api/cloud"));
    refresh();
  };
  return h(
    "form",
    { class: "settings-form", onsubmit: send, tLabel: "cloud.title" },
    h(
      "p",
      { class: "state-line" },
      h("span", {
        class: `pill ${cloud.configured ? "on" : ""}`,
        t: cloud.configured ? "cloud.on" : "cloud.off",
      }),
    ),
    labelled("cloud.name", name, "cloud.name_hint"),
    labelled("cloud.url", url, "cloud.url_hint"),
    labelled("cloud.model", model),
    labelled("cloud.key", key, cloud.has_key ? "cloud.key_kept" : "cloud.key_hint"),
    h(
      "div",
      { class: "button-row" },
      h("button", { type: "submit", class: "button primary", t: "dialog.save" }),
      cloud.configured ? button("cloud.turn_off", off) : null,
    ),
  );
}

/** @param {CloudLogEntry[]} entries */
function logBlock(entries) {
  return block(
    "cloud.log",
    "cloud.log_text",
    entries.length
      ? h(
          "div",
          { class: "table-scroll", tabindex: 0, role: "region", tLabel: "cloud.log" },
          h(
            "table",
            { class: "grid" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                ...["time", "to", "size", "hash"].map((c) =>
                  h("th", { scope: "col", t: `cloud.column.${c}` }),
                ),
              ),
            ),
            h("tbody", {}, ...entries.map(logRow)),
          ),
        )
      : h("p", { class: "nothing", t: "cloud.log_empty" }),
  );
}

/** @param {CloudLogEntry} entry */
function logRow(entry) {
  return h(
    "tr",
    {},
    h("td", { t: ["history.time", { time: () => when(entry.time) }] }),
    h("td", {}, `${entry.host} · ${entry.model}`),
    h("td", { t: ["history.time", { time: () => size(entry.bytes) }] }),
    h("td", { class: "verbatim", title: entry.sha256 }, (entry.sha256 ?? "").slice(0, 12)),
  );
}
