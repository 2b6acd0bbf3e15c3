/**
 * The prompt library: openings that are used often, put into the composer by a menu.
 */

import { h } from "./dom.js";
import { has, t } from "./i18n.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { go } from "./router.js";
import { store } from "./store.js";

/** @typedef {import("./types.js").Prompt} Prompt */

/**
 * The title of a prompt, translated for those that come with the program.
 * @param {Prompt} prompt
 */
export const promptTitle = (prompt) =>
  prompt.title_key && has(`prompt.${prompt.title_key}.title`)
    ? { words: `prompt.${prompt.title_key}.title` }
    : { label: prompt.title };

/**
 * The text of a prompt in the current language.
 * @param {Prompt} prompt
 */
export const promptText = (prompt) =>
  prompt.text_key && has(`prompt.${prompt.text_key}.text`)
    ? t(`prompt.${prompt.text_key}.text`)
    : prompt.text;

/**
 * @param {(words: string) => void} insert
 */
export function promptButton(insert) {
  const button = h(
    "button",
    {
      type: "button",
      class: "icon-button",
      tLabel: "prompts.title",
      tTitle: "prompts.title",
      "aria-haspopup": "menu",
      "aria-expanded": "false",
      onclick: () =>
        openMenu(button, "prompts.title", [
          ...store.prompts.map((p) => ({ ...promptTitle(p), run: () => insert(promptText(p)) })),
          {
            words: "prompts.manage",
            icon: "settings",
            divider: true,
            run: () => go("settings/prompts"),
          },
        ]),
    },
    icon("book"),
  );
  return button;
}
