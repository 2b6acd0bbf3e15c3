/**
 * Who answers: named assistants, each a system prompt with a name and a letter.
 */

import { call } from "./api.js";
import { fill, h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { attempt } from "./notices.js";
import { go } from "./router.js";
import { store, watch } from "./store.js";

/** @typedef {import("./types.js").Assistant} Assistant */

/**
 * The words of an assistant's name: translated for those that come with the program.
 * @param {Assistant} assistant
 */
export function assistantName(assistant) {
  return assistant.name_key
    ? h("span", { t: `assistant.${assistant.name_key}` })
    : h("span", {}, assistant.name);
}

/**
 * The letter that stands for an assistant.
 * @param {Assistant} assistant
 */
export function assistantLetter(assistant) {
  return h(
    "span",
    { class: "letter", "aria-hidden": "true" },
    assistant.icon || assistant.name.slice(0, 1),
  );
}

/** @param {Assistant} assistant */
const nameOf = (assistant) =>
  assistant.name_key ? { words: `assistant.${assistant.name_key}` } : { label: assistant.name };

/**
 * The button of the composer that names the assistant and lets choose another.
 * @param {import("./conversation.js").ConversationView} view
 */
export function assistantButton(view) {
  const current = () =>
    store.assistants.find((a) => a.id === view.assistant) ??
    store.assistants.find((a) => a.builtin);
  const words = h("span", { class: "chip-words" });
  const button = h(
    "button",
    {
      type: "button",
      class: "chip-button",
      "aria-haspopup": "menu",
      "aria-expanded": "false",
      tDescription: "assistants.choose",
      onclick: () =>
        openMenu(button, "assistants.choose", [
          ...store.assistants.map((a) => ({
            ...nameOf(a),
            checked: a.id === current()?.id,
            run: () => choose(a.id),
          })),
          {
            words: "assistants.manage",
            icon: "settings",
            divider: true,
            run: () => go("settings/assistants"),
          },
        ]),
    },
    icon("person"),
    words,
  );
  /** @param {string} id */
  const choose = async (id) => {
    view.assistant = id;
    refresh();
    if (view.id)
      await attempt(() => call("PATCH", `/api/conversations/${view.id}`, { assistant_id: id }));
  };
  const refresh = () => {
    const assistant = current();
    fill(words, assistant ? assistantName(assistant) : t("assistants.none"));
  };
  watch(["assistants"], refresh, button);
  return Object.assign(button, { refresh, choose });
}
