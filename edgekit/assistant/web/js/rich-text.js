/**
 * What the page adds to an answer's HTML: a copy button on code, room for wide tables, and citation
 * marks that open their passage.
 */

import { h } from "./dom.js";
import { icon } from "./icons.js";
import { notice } from "./notices.js";
import { openPassage } from "./sources.js";

/** @typedef {import("./types.js").Passage} Passage */

const CITATION = /\[(\d{1,3})\]/g;
const LAST_WORD = /(?:\p{Script=Han}|[^\s\p{Script=Han}]{1,24})\s?$/u;

/**
 * @param {HTMLElement} block freshly written HTML
 * @param {Passage[]} passages that [n] may point to
 */
export function enrich(block, passages) {
  for (const pre of block.querySelectorAll("pre")) frameCode(pre);
  for (const table of block.querySelectorAll("table")) {
    const frame = h("div", { class: "table-scroll", tabindex: 0, role: "group", tLabel: "message.table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  if (passages.length) linkCitations(block, passages);
}

/** @param {HTMLPreElement} pre */
function frameCode(pre) {
  const code = pre.querySelector("code");
  const name = /language-([\w+#.-]+)/.exec(code?.className ?? "")?.[1] ?? "";
  const text = () => pre.textContent ?? "";
  const frame = h(
    "div",
    { class: "code" },
    h(
      "div",
      { class: "code-head" },
      h("span", { class: "code-language" }, name),
      h(
        "button",
        { type: "button", class: "icon-button small", tLabel: "message.copy_code", onclick: () => copyText(text()) },
        icon("copy"),
      ),
    ),
  );
  pre.replaceWith(frame);
  pre.tabIndex = 0; // long lines scroll, and the keyboard must be able to
  frame.append(pre);
}

/**
 * @param {HTMLElement} block
 * @param {Passage[]} passages
 */
function linkCitations(block, passages) {
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  /** @type {Text[]} */
  const texts = [];
  while (walker.nextNode()) {
    const text = /** @type {Text} */ (walker.currentNode);
    if (!text.parentElement?.closest("pre, code, a, button")) texts.push(text);
  }
  for (const text of texts) {
    const parts = splitCitations(text.data, passages);
    if (parts.length > 1) text.replaceWith(...parts);
  }
}

/**
 * @param {string} text
 * @param {Passage[]} passages
 * @returns {(string|HTMLElement)[]}
 */
function splitCitations(text, passages) {
  /** @type {(string|HTMLElement)[]} */
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(CITATION)) {
    const passage = passages.find((p) => p.n === Number(match[1]));
    if (!passage) continue;
    const before = text.slice(end, match.index);
    const word = LAST_WORD.exec(before)?.[0] ?? "";
    // a mark stays on the line of the word that it proves
    parts.push(
      before.slice(0, before.length - word.length),
      h("span", { class: "proved" }, word.replace(/\s$/, "\u00a0"), citation(passage)),
    );
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

/**
 * The mark [n] in the text.
 * @param {Passage} passage
 */
function citation(passage) {
  return h(
    "button",
    {
      type: "button",
      class: "citation",
      tLabel: ["sources.open", { n: passage.n, file: passage.file }],
      onclick: () => openPassage(passage),
    },
    String(passage.n),
  );
}

/**
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice("message.copied");
  } catch {
    notice("message.copy_failed", { error: true });
  }
}
