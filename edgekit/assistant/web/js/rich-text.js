/**
 * What the page adds to an answer's HTML: a copy button on code, labels in the person's language,
 * and citation marks that open their passage.
 */

import { h } from "./dom.js";
import { bind } from "./i18n.js";
import { icon } from "./icons.js";
import { notice } from "./notices.js";
import { openPassage } from "./sources.js";

/** @typedef {import("./types.js").Passage} Passage */

const TOP_LEVEL = 3; // below the title of the conversation and the speaker
const CITATION = /\[(\d{1,3})\]/g;
const LAST_WORD = /(?:\p{Script=Han}|[^\s\p{Script=Han}]{1,24})\s?$/u;

/**
 * @param {HTMLElement} block freshly written HTML
 * @param {Passage[]} passages that [n] may point to
 */
export function enrich(block, passages) {
  for (const figure of block.querySelectorAll("figure.code")) addCopy(figure);
  for (const table of block.querySelectorAll("div.table")) {
    table.setAttribute("role", "group"); // one answer may have many: no landmarks
    bind(table, "label", "message.table");
  }
  for (const image of block.querySelectorAll(".image-blocked")) {
    bind(image, "title", "message.image_blocked");
  }
  if (passages.length) linkCitations(block, passages);
}

/**
 * Headings as an outline without gaps, whatever levels the model chose.
 * @param {HTMLElement} answer its blocks
 */
export function outline(answer) {
  let level = TOP_LEVEL - 1;
  for (const heading of answer.querySelectorAll("h3, h4, h5, h6")) {
    level = Math.min(Number(heading.tagName[1]), level + 1);
    heading.setAttribute("aria-level", String(level));
  }
}

/** @param {Element} figure */
function addCopy(figure) {
  const code = figure.querySelector("pre");
  const head = figure.querySelector("figcaption") ?? h("figcaption");
  head.append(
    h(
      "button",
      {
        type: "button",
        class: "icon-button small",
        tLabel: "message.copy_code",
        onclick: () => copyText(code?.textContent ?? ""),
      },
      icon("copy"),
    ),
  );
  figure.prepend(head);
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
 * Put a text on the clipboard; a web view that guards it takes it from a selection.
 * @param {string} text
 */
export async function copyText(text) {
  const copied = await navigator.clipboard.writeText(text).then(
    () => true,
    () => copySelected(text),
  );
  if (copied) notice("message.copied");
  else notice("message.copy_failed", { error: true });
}

/** @param {string} text */
function copySelected(text) {
  const back = /** @type {HTMLElement|null} */ (document.activeElement);
  const area = h("textarea", { class: "visually-hidden" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  back?.focus();
  return copied;
}
