/** Settings of the model: which pack, which device, how much memory. */

import { call, get, post } from "../api.js";
import { showReasons } from "../device-line.js";
import { confirmDialog } from "../dialogs.js";
import { button, fill, h } from "../dom.js";
import { compact, size } from "../i18n.js";
import { attempt } from "../notices.js";
import { addPack } from "../packs.js";
import { store, watch } from "../store.js";
import { targetName } from "../targets.js";
import { block, numberField, row } from "./form.js";

/** @typedef {import("../types.js").KnownPack} KnownPack */

/** Build the section. */
export function modelSection() {
  const packs = h("div");
  const refresh = async () => {
    const known = /** @type {KnownPack[]|null} */ (await attempt(() => get("/api/packs")));
    if (known)
      fill(
        packs,
        known.length
          ? h("ul", { class: "cards" }, ...known.map((p) => h("li", {}, card(p, refresh))))
          : h("p", { class: "nothing", t: "packs.none" }),
      );
  };
  const element = h(
    "div",
    {},
    block(
      "packs.title",
      "packs.text",
      packs,
      h(
        "div",
        { class: "button-row" },
        button("packs.add", async () => {
          if (await addPack()) await refresh();
        }),
      ),
    ),
    block(
      "device.settings_title",
      "device.settings_text",
      deviceRow(),
      numberField("system_memory_limit_gb", { min: 0, max: 4096, step: 0.5 }),
      h(
        "p",
        {},
        h("button", { type: "button", class: "link", t: "device.why", onclick: showReasons }),
      ),
    ),
  );
  watch(["app"], refresh, element);
  return element;
}

/**
 * @param {KnownPack} pack
 * @param {() => void} refresh
 */
function card(pack, refresh) {
  return h(
    "article",
    { class: `card${pack.current ? " current" : ""}` },
    h(
      "div",
      { class: "card-head" },
      h(
        "div",
        { class: "card-words" },
        h("h3", {}, `${pack.name} ${pack.version}`),
        h("p", { class: "path" }, pack.path),
      ),
      pack.current
        ? h("span", { class: "pill ready", t: `packs.state.${store.app.engine.state}` })
        : null,
    ),
    h(
      "p",
      { class: "hint" },
      h("span", { t: ["device.parameters", { amount: () => compact(pack.parameters) }] }),
      pack.bytes
        ? [" · ", h("span", { t: ["packs.size", { size: () => size(pack.bytes) }] })]
        : null,
      ` · ${pack.license}`,
    ),
    pack.problem ? h("p", { class: "note error" }, pack.problem) : null,
    pack.current
      ? null
      : h(
          "div",
          { class: "button-row" },
          button(
            "packs.use",
            () => attempt(() => post("/api/engine", { pack: pack.path })),
            "quiet",
          ),
          button("packs.forget", () => forget(pack, refresh), "quiet"),
        ),
  );
}

/**
 * @param {KnownPack} pack
 * @param {() => void} refresh
 */
async function forget(pack, refresh) {
  const sure = await confirmDialog(
    "packs.forget",
    ["packs.forget_text", { name: pack.name }],
    "packs.forget",
  );
  if (!sure) return;
  await attempt(() => call("DELETE", "/api/packs", { path: pack.path }));
  refresh();
}

/** The device as a choice. */
function deviceRow() {
  const choice = h("select", {
    class: "field",
    onchange: () => attempt(() => post("/api/engine", { target: choice.value })),
  });
  const draw = async () => {
    const devices = /** @type {import("../types.js").Device[]|null} */ (
      await attempt(() => get("/api/devices"))
    );
    if (!devices) return;
    fill(
      choice,
      h("option", { value: "", t: "device.automatic" }),
      ...devices
        .filter((d) => d.available && d.code !== "not_compiled")
        .map((d) => h("option", { value: d.target }, targetName(d.target))),
    );
    choice.value = store.app.settings.target;
  };
  draw();
  return row("target", choice);
}
