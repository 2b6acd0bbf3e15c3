/**
 * Where and why: the line that names the device, the runtime and the pack; one click to the
 * reasons, one to another device.
 */

import { get, post } from "./api.js";
import { openDialog } from "./dialogs.js";
import { fill, h } from "./dom.js";
import { compact, has, number } from "./i18n.js";
import { openMenu } from "./menu.js";
import { attempt } from "./notices.js";
import { go } from "./router.js";
import { store, watch } from "./store.js";
import { targetName } from "./targets.js";

/** @typedef {import("./types.js").Device} Device */

/** The line and its two buttons. */
export function deviceLine() {
  const words = h("span", { class: "device-words" });
  const why = h(
    "button",
    { type: "button", class: "device-why", tDescription: "device.why_hint", onclick: showReasons },
    h("span", { class: "dot", "aria-hidden": "true" }),
    words,
  );
  const change = h("button", {
    type: "button",
    class: "link",
    t: "device.change",
    tDescription: "device.change_hint",
    "aria-haspopup": "menu",
    "aria-expanded": "false",
    onclick: () => changeDevice(change),
  });
  const element = h("div", { class: "device-line" }, why, change);
  const redraw = () => {
    const { engine } = store.app;
    element.dataset.state = engine.state;
    fill(words, describe());
    change.hidden = engine.state === "none";
  };
  watch(["app", "speed"], redraw, element);
  return element;
}

/** The words of the line. */
function describe() {
  const { engine } = store.app;
  const { speed } = store;
  const name = engine.pack?.name ?? "";
  if (engine.state === "none") return h("span", { t: "device.none" });
  if (engine.state === "loading") return h("span", { t: ["device.loading", { name }] });
  if (engine.state === "failed") return h("span", { t: ["device.failed", { name }] });
  const where = `${targetName(engine.target)} · ${name}`;
  if (speed === null) return h("span", {}, where);
  return h("span", {
    t: ["device.line", { where, speed: () => number(speed, { maximumFractionDigits: 0 }) }],
  });
}

/** The reasons, as `edgekit devices --explain` tells them. */
export async function showReasons() {
  const devices = /** @type {Device[]|null} */ (await attempt(() => get("/api/devices")));
  if (!devices) return;
  const { engine } = store.app;
  await openDialog(
    "device.title",
    (close) => [
      h(
        "div",
        { class: "dialog-body" },
        h("p", {
          t: engine.pack ? ["device.intro", { name: engine.pack.name }] : "device.intro_none",
        }),
        h(
          "div",
          { class: "table-scroll", tabindex: 0, role: "region", tLabel: "device.title" },
          table(devices),
        ),
        facts(),
        h(
          "p",
          {},
          h("button", {
            type: "button",
            class: "link",
            t: "device.settings",
            onclick: () => {
              close(null);
              go("settings/model");
            },
          }),
        ),
      ),
    ],
    { wide: true },
  );
}

/** @param {Device[]} devices */
function table(devices) {
  return h(
    "table",
    { class: "grid" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ...["target", "here", "hardware", "reason"].map((c) =>
          h("th", { scope: "col", t: `device.column.${c}` }),
        ),
      ),
    ),
    h("tbody", {}, ...devices.map(row)),
  );
}

/** @param {Device} device */
function row(device) {
  const known = has(`reason.${device.code}`);
  return h(
    "tr",
    { class: device.chosen ? "chosen" : "" },
    h("th", { scope: "row" }, targetName(device.target)),
    h("td", { t: device.available ? "device.yes" : "device.no" }),
    h("td", {}, device.available ? device.detail : "–"),
    known ? h("td", { t: `reason.${device.code}` }) : h("td", {}, device.reason || device.detail),
  );
}

/** What else is known of the loaded model. */
function facts() {
  const { engine } = store.app;
  if (!engine.pack) return null;
  const { parameters } = engine.pack;
  const rows = /** @type {[string, string|HTMLElement][]} */ ([
    ["device.fact.pack", `${engine.pack.name} ${engine.pack.version}`],
    [
      "device.fact.parameters",
      h("span", { t: ["device.parameters", { amount: () => compact(parameters) }] }),
    ],
    ["device.fact.context", h("span", { t: ["device.tokens", { count: engine.context_length }] })],
    ["device.fact.license", engine.pack.license],
  ]);
  return h(
    "dl",
    { class: "facts" },
    ...rows.flatMap(([key, value]) => [h("dt", { t: key }), h("dd", {}, value)]),
  );
}

/**
 * A menu of what can run the model here; choosing loads it there.
 * @param {HTMLElement} anchor
 */
export async function changeDevice(anchor) {
  const devices = /** @type {Device[]|null} */ (await attempt(() => get("/api/devices")));
  if (!devices) return;
  const { engine, settings } = store.app;
  /** @param {string} target */
  const use = (target) => () => attempt(() => post("/api/engine", { target }));
  const usable = devices.filter((d) => d.available && d.code !== "not_compiled");
  openMenu(anchor, "device.change_hint", [
    {
      words: "device.automatic",
      detailWords: "device.automatic_hint",
      checked: !settings.target,
      run: use(""),
    },
    ...usable.map((d) => ({
      label: targetName(d.target),
      detail: d.detail,
      checked: settings.target !== "" && d.target === engine.target,
      run: use(d.target),
    })),
    {
      words: "device.other_model",
      icon: "settings",
      divider: true,
      run: () => go("settings/model"),
    },
  ]);
}
