/**
 * What stands above the composer when something is wrong: no model, a model that failed, a history
 * that had to be repaired, the host that has gone.
 */

import { post } from "./api.js";
import { button, fill, h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { attempt } from "./notices.js";
import { go } from "./router.js";
import { store, watch } from "./store.js";

/** @type {Set<string>} */
const read = new Set();

/** The banner; empty while all is well. */
export function troubleBanner() {
  const element = h("div", { class: "trouble" });
  watch(["app"], () => fill(element, ...notices(), recovery(), engineTrouble()), element);
  return element;
}

function engineTrouble() {
  const { engine } = store.app;
  if (engine.state === "ready" && engine.error && !read.has(engine.error)) {
    return sentenceBanner("warning", engine.error); // a switch failed and the old model goes on
  }
  if (engine.state === "none") {
    return banner("info", h("span", { t: "trouble.no_model" }), [
      button("trouble.choose_model", () => go("welcome"), "primary"),
    ]);
  }
  if (engine.state !== "failed") return null;
  const sentence = () => engine.error || t("error.unknown");
  return banner("warning", h("span", { t: ["trouble.failed", { sentence }] }), [
    button("trouble.again", () => attempt(() => post("/api/engine", {})), "primary"),
    button("trouble.other_device", () => go("settings/model")),
  ]);
}

/** Sentences about files that could not be read at the start; each can be put away. */
function notices() {
  return (store.app.notices ?? [])
    .filter((sentence) => !read.has(sentence))
    .map((sentence) => sentenceBanner("info", sentence));
}

/**
 * A sentence of the host that stays until it is put away.
 * @param {"info"|"warning"} kind
 * @param {string} sentence
 */
function sentenceBanner(kind, sentence) {
  const element = banner(kind, h("span", {}, sentence), [
    button("trouble.understood", () => {
      read.add(sentence);
      element.remove();
    }),
  ]);
  return element;
}

function recovery() {
  const { recovery: report } = store.app;
  if (!report) return null;
  return banner(
    "info",
    h("span", {
      t: ["trouble.recovered", { saved: report.saved, lost: report.lost, backup: report.backup }],
    }),
    [button("trouble.understood", () => attempt(() => post("/api/recovery/dismiss")))],
  );
}

/**
 * @param {"info"|"warning"} kind
 * @param {HTMLElement} text
 * @param {HTMLElement[]} buttons
 */
function banner(kind, text, buttons) {
  return h(
    "div",
    { class: `banner ${kind}`, role: "status" },
    icon(kind),
    text,
    h("div", { class: "button-row" }, ...buttons),
  );
}
