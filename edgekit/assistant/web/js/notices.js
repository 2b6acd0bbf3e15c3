/**
 * Short notices at the foot of the window, read out politely: what was done, or why it was not.
 */

import { sentenceOf } from "./api.js";
import { byId, h } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 6000;

/**
 * @param {import("./dom.js").Words} words
 * @param {{error?: boolean}} [options]
 */
export function notice(words, { error = false } = {}) {
  show(h("span", { t: words }), error);
}

/**
 * Tell why something failed.
 * @param {unknown} error
 */
export function failed(error) {
  show(h("span", {}, sentenceOf(error)), true);
}

/**
 * Run something that talks to the host and tell when it fails; null then.
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T|null>}
 */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    failed(error);
    return null;
  }
}

/**
 * @param {HTMLElement} text
 * @param {boolean} error
 */
function show(text, error) {
  const item = h(
    "div",
    { class: `notice${error ? " error" : ""}` },
    icon(error ? "warning" : "check"),
    text,
    h(
      "button",
      {
        type: "button",
        class: "icon-button small",
        tLabel: "dialog.close",
        onclick: () => item.remove(),
      },
      icon("close"),
    ),
  );
  // a modal dialog makes the rest of the page inert, so the notice goes inside it
  const dialogs = document.querySelectorAll("dialog[open]");
  const top = dialogs[dialogs.length - 1];
  if (top) {
    top.querySelector(".dialog-notice")?.remove();
    const inside = h("div", { class: "dialog-notice", role: "status" }, item);
    top.append(inside);
  } else {
    byId("notices").append(item);
  }
  setTimeout(() => item.remove(), error ? SHOWN_MS * 2 : SHOWN_MS);
}
