/**
 * The first start: what this is, and two ways to a model, each explained in a sentence.
 */

import { post } from "./api.js";
import { button, fill, h } from "./dom.js";
import { has } from "./i18n.js";
import { icon } from "./icons.js";
import { attempt } from "./notices.js";
import { addPack } from "./packs.js";
import { go } from "./router.js";
import { languageChoice } from "./settings/appearance.js";
import { store, watch } from "./store.js";

/** Build the page. */
export function welcomeView() {
  const ways = h("div", { class: "ways" });
  const element = h(
    "div",
    { class: "welcome" },
    h(
      "div",
      { class: "welcome-inner" },
      h("p", { class: "welcome-language" }, languageChoice()),
      h("h1", { class: "welcome-title", t: "welcome.title" }),
      h("p", { class: "lead", t: "welcome.text" }),
      ways,
      h(
        "ul",
        { class: "promises" },
        ...["local", "documents", "cloud"].map((key) =>
          h("li", {}, icon("check"), h("span", { t: `welcome.promise.${key}` })),
        ),
      ),
    ),
  );
  let before = store.app.engine.state;
  watch(
    ["app"],
    () => {
      const { engine } = store.app;
      fill(ways, demoWay(), fileWay());
      if (before === "none" && engine.state !== "none") go("");
      before = engine.state;
    },
    element,
  );
  return element;
}

function demoWay() {
  const { demo } = store.app;
  const works = demo.state === "downloading" || demo.state === "building";
  return way("bolt", "welcome.demo", [
    demo.state === "failed"
      ? h("p", { class: "note error" }, icon("warning"), h("span", {}, demo.error ?? demo.detail))
      : null,
    works ? progress() : null,
    works || !demo.available
      ? null
      : button("welcome.demo_action", () => attempt(() => post("/api/packs/demo")), "primary"),
    demo.available ? null : h("p", { class: "hint", t: "welcome.demo_unavailable" }),
  ]);
}

function progress() {
  const { demo } = store.app;
  const detail = has(`demo.${demo.detail}`) ? { t: `demo.${demo.detail}` } : {};
  return h(
    "div",
    { class: "progress", role: "group", tLabel: "welcome.progress" },
    h("progress", { max: 1, value: demo.fraction, tLabel: "welcome.progress" }),
    h("p", { class: "hint", ...detail }, "t" in detail ? null : demo.detail),
  );
}

function fileWay() {
  return way("folder", "welcome.file", [button("welcome.file_action", () => addPack())]);
}

/**
 * @param {import("./icons.js").IconName} name
 * @param {string} key
 * @param {(HTMLElement|null)[]} content
 */
function way(name, key, content) {
  return h(
    "section",
    { class: "way" },
    h("span", { class: "way-icon" }, icon(name)),
    h("h2", { t: `${key}_title` }),
    h("p", { t: `${key}_text` }),
    ...content,
  );
}
