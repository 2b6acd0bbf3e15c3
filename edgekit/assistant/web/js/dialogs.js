/**
 * Dialogs: the browser's own `<dialog>`, which keeps the focus inside while it is open and gives it
 * back to where it came from.
 */

import { button, h } from "./dom.js";
import { icon } from "./icons.js";

/** @typedef {import("./dom.js").Words} Words */
/** @typedef {import("./dom.js").Child} Child */

let count = 0;

/**
 * Show a dialog; gives what `close` was called with, or null when it was dismissed.
 * @template T
 * @param {Words} title
 * @param {(close: (value: T|null) => void) => Child[]} build its content
 * @param {{wide?: boolean, side?: boolean}} [options]
 * @returns {Promise<T|null>}
 */
export function openDialog(title, build, { wide = false, side = false } = {}) {
  return new Promise((resolve) => {
    const back = /** @type {HTMLElement|null} */ (document.activeElement);
    const id = `dialog-${++count}`;
    const kind = side ? "side" : wide ? "wide" : "";
    /** @type {T|null} */
    let result = null;
    /** @param {T|null} value */
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const dialog = h(
      "dialog",
      { class: `dialog ${kind}`.trim(), "aria-labelledby": id },
      h(
        "header",
        { class: "dialog-head" },
        h("h2", { id, t: title }),
        h(
          "button",
          {
            type: "button",
            class: "icon-button",
            tLabel: "dialog.close",
            onclick: () => close(null),
          },
          icon("close"),
        ),
      ),
      build(close),
    );
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) close(null); // the backdrop: content fills the dialog's box
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (back?.isConnected) back.focus();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    const first = dialog.querySelector("[autofocus]");
    if (first instanceof HTMLElement) first.focus();
  });
}

/**
 * Ask before doing something that cannot be undone.
 * @param {Words} title
 * @param {Words} text
 * @param {Words} action what the button says
 * @param {{danger?: boolean, detail?: string}} [options] `detail` is shown as it is, e.g. an address
 * @returns {Promise<boolean>}
 */
export async function confirmDialog(title, text, action, { danger = false, detail = "" } = {}) {
  const answer = await openDialog(title, (/** @type {(value: boolean|null) => void} */ close) => [
    h(
      "div",
      { class: "dialog-body" },
      h("p", { t: text }),
      detail ? h("p", { class: "verbatim" }, detail) : null,
    ),
    actions(
      button("dialog.cancel", () => close(false)),
      button(action, () => close(true), danger ? "danger" : "primary"),
    ),
  ]);
  return answer === true;
}

/**
 * Ask for one line of text; null when dismissed.
 * @param {Words} title
 * @param {Words} label
 * @param {string} value
 * @param {Words} action
 * @returns {Promise<string|null>}
 */
export function promptDialog(title, label, value, action) {
  return openDialog(title, (close) => {
    const input = h("input", { type: "text", class: "field", value, autofocus: true });
    return [
      h(
        "form",
        {
          class: "dialog-form",
          onsubmit: (/** @type {Event} */ event) => {
            event.preventDefault();
            if (input.value.trim()) close(input.value.trim());
          },
        },
        h(
          "div",
          { class: "dialog-body" },
          h("label", { class: "labelled" }, h("span", { t: label }), input),
        ),
        actions(
          button("dialog.cancel", () => close(null)),
          h("button", { type: "submit", class: "button primary", t: action }),
        ),
      ),
    ];
  });
}

/**
 * The row of buttons at the end of a dialog.
 * @param {...Child} children
 */
export function actions(...children) {
  return h("footer", { class: "dialog-actions" }, ...children);
}
