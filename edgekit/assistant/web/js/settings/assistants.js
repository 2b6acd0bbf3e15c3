/** Settings of named assistants and of the prompt library: two lists that are edited alike. */

import { call, post } from "../api.js";
import { assistantLetter, assistantName } from "../assistants.js";
import { actions, confirmDialog, openDialog } from "../dialogs.js";
import { button, fill, h } from "../dom.js";
import { attempt } from "../notices.js";
import { promptText, promptTitle } from "../prompts.js";
import { refreshAssistants, refreshPrompts } from "../refresh.js";
import { store, watch } from "../store.js";
import { block, labelled } from "./form.js";

/** @typedef {import("../types.js").Assistant} Assistant */
/** @typedef {import("../types.js").Prompt} Prompt */

/** Build the section of assistants. */
export function assistantsSection() {
  const list = h("ul", { class: "cards" });
  const element = block(
    "assistants.title",
    "assistants.text",
    list,
    button("assistants.new", () => editAssistant(null)),
  );
  watch(
    ["assistants"],
    () => fill(list, ...store.assistants.map((a) => h("li", {}, assistantCard(a)))),
    element,
  );
  return element;
}

/** Build the section of prompts. */
export function promptsSection() {
  const list = h("ul", { class: "cards" });
  const element = block(
    "prompts.title",
    "prompts.text",
    list,
    button("prompts.new", () => editPrompt(null)),
  );
  watch(
    ["prompts"],
    () => fill(list, ...store.prompts.map((p) => h("li", {}, promptCard(p)))),
    element,
  );
  return element;
}

/** @param {Assistant} assistant */
function assistantCard(assistant) {
  const text = assistant.name_key
    ? h("p", { class: "clamped", t: `assistant.${assistant.name_key}_text` })
    : h("p", { class: "clamped" }, assistant.system_prompt);
  return h(
    "article",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      assistantLetter(assistant),
      h("h3", {}, assistantName(assistant)),
    ),
    text,
    assistant.builtin
      ? null
      : editRow(
          () => editAssistant(assistant),
          "assistants",
          assistant.id,
          assistant.name,
          refreshAssistants,
        ),
  );
}

/** @param {Prompt} prompt */
function promptCard(prompt) {
  const { words, label } = { words: undefined, label: undefined, ...promptTitle(prompt) };
  const text = prompt.text_key
    ? h("p", { class: "clamped", t: `prompt.${prompt.text_key}.text` })
    : h("p", { class: "clamped" }, promptText(prompt));
  return h(
    "article",
    { class: "card" },
    words ? h("h3", { t: words }) : h("h3", {}, label ?? ""),
    text,
    prompt.builtin
      ? null
      : editRow(() => editPrompt(prompt), "prompts", prompt.id, prompt.title, refreshPrompts),
  );
}

/**
 * @param {() => void} edit
 * @param {"assistants"|"prompts"} kind
 * @param {string} id
 * @param {string} name
 * @param {() => Promise<void>} refresh
 */
function editRow(edit, kind, id, name, refresh) {
  const remove = async () => {
    const sure = await confirmDialog(
      "dialog.delete",
      ["dialog.delete_text", { name }],
      "dialog.delete",
      { danger: true },
    );
    if (!sure) return;
    await attempt(() => call("DELETE", `/api/${kind}/${id}`));
    await refresh();
  };
  return h(
    "div",
    { class: "button-row" },
    button("dialog.edit", edit, "quiet"),
    button("dialog.delete", remove, "quiet"),
  );
}

/** @param {Assistant|null} assistant */
async function editAssistant(assistant) {
  const name = h("input", {
    class: "field",
    type: "text",
    maxlength: 60,
    required: true,
    value: assistant?.name ?? "",
    autofocus: true,
  });
  const prompt = h("textarea", { class: "field", rows: 8 });
  prompt.value = assistant?.system_prompt ?? "";
  const saved = await editDialog(assistant ? "dialog.edit" : "assistants.new", [
    labelled("assistants.name", name),
    labelled("assistants.prompt", prompt, "assistants.prompt_hint"),
  ]);
  if (!saved) return;
  const data = {
    name: name.value.trim(),
    icon: name.value.trim().slice(0, 1),
    system_prompt: prompt.value,
  };
  await attempt(() =>
    assistant
      ? call("PUT", `/api/assistants/${assistant.id}`, data)
      : post("/api/assistants", data),
  );
  await refreshAssistants();
}

/** @param {Prompt|null} prompt */
async function editPrompt(prompt) {
  const title = h("input", {
    class: "field",
    type: "text",
    maxlength: 80,
    required: true,
    value: prompt?.title ?? "",
    autofocus: true,
  });
  const text = h("textarea", { class: "field", rows: 8, required: true });
  text.value = prompt?.text ?? "";
  const saved = await editDialog(prompt ? "dialog.edit" : "prompts.new", [
    labelled("prompts.name", title),
    labelled("prompts.words", text),
  ]);
  if (!saved) return;
  const data = { title: title.value.trim(), text: text.value };
  await attempt(() =>
    prompt ? call("PUT", `/api/prompts/${prompt.id}`, data) : post("/api/prompts", data),
  );
  await refreshPrompts();
}

/**
 * @param {string} title
 * @param {HTMLElement[]} fields
 * @returns {Promise<boolean|null>}
 */
export function editDialog(title, fields) {
  return openDialog(title, (close) => [
    h(
      "form",
      {
        class: "dialog-form",
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          close(true);
        },
      },
      h("div", { class: "dialog-body" }, ...fields),
      actions(
        button("dialog.cancel", () => close(null)),
        h("button", { type: "submit", class: "button primary", t: "dialog.save" }),
      ),
    ),
  ]);
}
