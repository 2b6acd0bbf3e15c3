/**
 * The parts of settings: a labelled row whose control saves at once.
 */

import { call } from "../api.js";
import { h } from "../dom.js";
import { attempt } from "../notices.js";
import { store } from "../store.js";

/** @typedef {import("../dom.js").Words} Words */
/** @typedef {import("../types.js").Settings} Settings */

let count = 0;

/**
 * Change settings; the host answers with its new state as an event.
 * @param {Partial<Settings>} change
 */
export async function save(change) {
  await attempt(() => call("PUT", "/api/settings", change));
}

/**
 * A heading, a sentence and what belongs to them.
 * @param {Words} title
 * @param {Words|null} text
 * @param {...import("../dom.js").Child} children
 */
export function block(title, text, ...children) {
  return h(
    "section",
    { class: "settings-block" },
    h("h2", { t: title }),
    text && h("p", { class: "lead", t: text }),
    ...children,
  );
}

/**
 * A label, a hint and a control in one row.
 * @param {string} key `setting.KEY` is the label, `setting.KEY_hint` the hint
 * @param {HTMLElement} control
 */
export function row(key, control) {
  const id = `setting-${++count}`;
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-hint`);
  return h(
    "div",
    { class: "setting" },
    h(
      "div",
      { class: "setting-words" },
      h("label", { for: id, t: `setting.${key}` }),
      h("p", { class: "hint", id: `${id}-hint`, t: `setting.${key}_hint` }),
    ),
    h("div", { class: "setting-control" }, control),
  );
}

/**
 * A choice among few.
 * @param {keyof Settings} key
 * @param {string[]} options the words of each are `setting.KEY.OPTION`
 */
export function select(key, options) {
  const element = h(
    "select",
    { class: "field", onchange: () => save({ [key]: element.value }) },
    ...options.map((value) => h("option", { value, t: `setting.${key}.${value}` })),
  );
  element.value = String(store.app.settings[key]);
  return row(key, element);
}

/**
 * A number.
 * @param {keyof Settings} key
 * @param {{min: number, max: number, step: number}} limits
 */
export function numberField(key, { min, max, step }) {
  const element = h("input", {
    class: "field number",
    type: "number",
    min,
    max,
    step,
    required: true,
    onchange: () => {
      if (element.reportValidity()) save({ [key]: Number(element.value) });
    },
  });
  element.value = String(store.app.settings[key] ?? "");
  return row(key, element);
}

/**
 * On or off.
 * @param {keyof Settings} key
 */
export function toggle(key) {
  const element = h("input", {
    type: "checkbox",
    role: "switch",
    class: "switch",
    checked: Boolean(store.app.settings[key]),
    onchange: () => save({ [key]: element.checked }),
  });
  return row(key, element);
}

/**
 * A field of a form that is sent as a whole.
 * @param {Words} label
 * @param {HTMLElement} control
 * @param {Words} [hint]
 */
export function labelled(label, control, hint) {
  return h(
    "label",
    { class: "labelled" },
    h("span", { t: label }),
    control,
    hint && h("span", { class: "hint", t: hint }),
  );
}
