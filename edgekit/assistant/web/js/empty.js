/**
 * What a new conversation shows: one quiet sentence, and openings to choose from.
 */

import { h } from "./dom.js";
import { icon } from "./icons.js";
import { promptText, promptTitle } from "./prompts.js";
import { go } from "./router.js";
import { store } from "./store.js";

const SHOWN = 4;

/** @param {import("./composer.js").Composer} composer */
export function emptyPage(composer) {
  const openings = store.prompts.slice(0, SHOWN).map((prompt) => {
    const { words, label } = { words: undefined, label: undefined, ...promptTitle(prompt) };
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "opening", onclick: () => composer.insert(promptText(prompt)) },
        words ? h("span", { t: words }) : h("span", {}, label ?? ""),
      ),
    );
  });
  const local = !store.app.cloud.configured || store.app.policy.cloud === "forbidden";
  return h(
    "div",
    { class: "empty-page" },
    h("h2", { t: "empty.title" }),
    h(
      "p",
      { class: "lead" },
      icon("lock"),
      h("span", { t: local ? "empty.local" : "empty.local_cloud" }),
    ),
    openings.length ? h("ul", { class: "openings", tLabel: "prompts.title" }, ...openings) : null,
    store.documents?.sources.length
      ? null
      : h(
          "p",
          { class: "hint" },
          h("span", { t: "empty.documents" }),
          " ",
          link("empty.add_documents", "documents"),
        ),
  );
}

/**
 * @param {string} words
 * @param {string} path
 */
function link(words, path) {
  return h("button", { type: "button", class: "link", t: words, onclick: () => go(path) });
}
