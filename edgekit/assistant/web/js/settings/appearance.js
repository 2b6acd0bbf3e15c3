/** Settings of appearance: language and theme. */

import { h } from "../dom.js";
import { store } from "../store.js";
import { block, save, select } from "./form.js";

const LANGUAGES = /** @type {const} */ ({ en: "English", "zh-CN": "简体中文" });

/** Build the section. */
export function appearanceSection() {
  return h(
    "div",
    {},
    block(
      "settings.appearance",
      null,
      select("language", ["auto", "en", "zh-CN"]),
      select("theme", ["auto", "light", "dark"]),
    ),
  );
}

/** Two buttons, each in its own language: for a person who cannot read the other. */
export function languageChoice() {
  return h(
    "span",
    { class: "languages", role: "group", tLabel: "setting.language" },
    ...Object.entries(LANGUAGES).map(([tag, name]) =>
      h(
        "button",
        {
          type: "button",
          class: "link",
          lang: tag,
          onclick: () => save({ language: /** @type {"en"|"zh-CN"} */ (tag) }),
        },
        name,
      ),
    ),
  );
}

/** Use the theme of the settings. */
export function applyTheme() {
  document.documentElement.dataset.theme = store.app.settings.theme;
}
