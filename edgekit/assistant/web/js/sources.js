/**
 * Where an answer comes from: the row of sources under it, and a passage in its surroundings.
 */

import { get } from "./api.js";
import { h } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { attempt } from "./notices.js";

/** @typedef {import("./types.js").Passage} Passage */

/**
 * The sources of an answer.
 * @param {Passage[]} passages
 */
export function sourceRow(passages) {
  return h(
    "div",
    { class: "sources", role: "group", tLabel: "sources.title" },
    h("h3", { class: "sources-title", t: "sources.title" }),
    h("ol", { class: "sources-list" }, ...passages.map((p) => h("li", {}, chip(p)))),
  );
}

/** @param {Passage} passage */
function chip(passage) {
  return h(
    "button",
    { type: "button", class: "source", onclick: () => openPassage(passage) },
    h("span", { class: "source-number" }, String(passage.n)),
    h("span", { class: "source-file" }, fileName(passage.file)),
    passage.page === null || passage.page === undefined
      ? null
      : h("span", { class: "source-page", t: ["sources.page", { page: passage.page }] }),
  );
}

/**
 * The passage in a side sheet: its file and page, the words around it, and why it was found.
 * @param {Passage} passage
 */
export async function openPassage(passage) {
  const whole = await attempt(() => get(`/api/passages/${encodeURIComponent(passage.id)}`));
  if (!whole) return;
  const page = whole.page ?? passage.page;
  await openDialog(
    ["sources.passage", { n: passage.n }],
    () => [
      h(
        "div",
        { class: "dialog-body passage" },
        h(
          "p",
          { class: "passage-place" },
          h("strong", { title: whole.file }, fileName(whole.file)),
          page === null || page === undefined ? null : h("span", { t: ["sources.page", { page }] }),
          whole.heading ? h("span", {}, whole.heading) : null,
        ),
        h("p", { class: "hint", t: `sources.why.${passage.why || "both"}` }),
        h(
          "blockquote",
          { class: "passage-text", tabindex: 0 },
          h("span", {}, whole.before ?? ""),
          h("mark", {}, whole.text),
          h("span", {}, whole.after ?? ""),
        ),
        h("p", { class: "hint", t: "sources.quoted" }),
      ),
    ],
    { side: true },
  );
}

/**
 * The last part of a path, with either kind of slash.
 * @param {string} path
 */
export function fileName(path) {
  return path.split(/[\\/]/).filter(Boolean).at(-1) ?? path;
}
