/**
 * The documents that answers may quote: what is indexed, how far, and what could not be read.
 */

import { ApiError, call, post, upload } from "./api.js";
import { confirmDialog, promptDialog } from "./dialogs.js";
import { button, fill, h } from "./dom.js";
import { icon } from "./icons.js";
import { attempt, failed, notice } from "./notices.js";
import { refreshDocuments } from "./refresh.js";
import { fileName } from "./sources.js";
import { store, watch } from "./store.js";

/** @typedef {import("./types.js").Source} Source */

const MANY_PROBLEMS = 20;

/** Build the view. */
export function documentsView() {
  const list = h("div");
  const progress = h("div", { class: "progress-slot", role: "status" });
  const embedding = h("div");
  const element = h(
    "div",
    { class: "page" },
    h(
      "div",
      { class: "page-inner" },
      h("h1", { class: "page-title", t: "documents.title" }),
      h("p", { class: "lead", t: "documents.text" }),
      h(
        "div",
        { class: "button-row" },
        button("documents.add_folder", () => add("folder"), "primary"),
        button("documents.add_file", () => add("file")),
        button("documents.upload", chooseFiles),
      ),
      h("p", { class: "hint", t: "documents.kinds" }),
      progress,
      list,
      embedding,
    ),
  );
  watch(
    ["documents"],
    () => {
      fill(progress, progressBar());
      fill(list, sourceList());
      fill(embedding, embeddingCard());
    },
    element,
  );
  dropTarget(element);
  refreshDocuments();
  return element;
}

/** @param {"file"|"folder"} kind */
async function add(kind) {
  try {
    for (const added of await pick(kind)) {
      notice(["documents.added", { name: fileName(added.path) }]);
    }
    await refreshDocuments();
  } catch (error) {
    failed(error);
  }
}

/**
 * @param {"file"|"folder"} kind
 * @returns {Promise<Source[]>}
 */
async function pick(kind) {
  try {
    return await post("/api/documents/pick", { kind });
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "no_dialog")) throw error;
  }
  const path = await promptDialog(
    `documents.add_${kind}`,
    "documents.path",
    "",
    "documents.add_action",
  );
  return path ? [await post("/api/documents", { path })] : [];
}

function chooseFiles() {
  const input = h("input", { type: "file", multiple: true });
  input.addEventListener("change", () => uploadFiles([...(input.files ?? [])]));
  input.click();
}

/**
 * Send files to the library of documents.
 * @param {File[]} files
 */
export async function uploadFiles(files) {
  for (const file of files) {
    const path = `/api/documents/upload?name=${encodeURIComponent(file.name)}`;
    const added = await attempt(() => upload(path, file));
    if (added) notice(["documents.added", { name: file.name }]);
  }
  await refreshDocuments();
}

/** @param {HTMLElement} element */
function dropTarget(element) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("dropping");
  });
  element.addEventListener("dragleave", () => element.classList.remove("dropping"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("dropping");
    uploadFiles([...(event.dataTransfer?.files ?? [])]);
  });
}

function progressBar() {
  const progress = store.documents?.progress;
  if (!progress || progress.state !== "indexing") return null;
  const { done, total, current } = progress;
  return h(
    "div",
    { class: "progress" },
    h("progress", { max: Math.max(1, total), value: done, tLabel: "documents.indexing" }),
    h("p", { class: "hint", t: ["documents.progress", { done, total, file: fileName(current) }] }),
  );
}

function sourceList() {
  const sources = store.documents?.sources ?? [];
  if (!sources.length) return h("p", { class: "nothing", t: "documents.none" });
  return h("ul", { class: "cards" }, ...sources.map((source) => h("li", {}, card(source))));
}

/** @param {Source} source */
function card(source) {
  return h(
    "article",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      icon(source.kind === "folder" ? "folder" : "file"),
      h(
        "div",
        { class: "card-words" },
        h("h2", {}, fileName(source.path)),
        h("p", { class: "path" }, source.path),
      ),
      h("span", { class: `pill ${source.state}`, t: `documents.state.${source.state}` }),
    ),
    h(
      "p",
      { class: "hint" },
      h("span", { t: ["documents.files", { count: source.files }] }),
      " · ",
      h("span", { t: ["documents.passages", { count: source.passages }] }),
    ),
    problems(source),
    h(
      "div",
      { class: "button-row" },
      button("documents.refresh", () => change("POST", `${source.id}/refresh`), "quiet"),
      button("documents.remove", () => remove(source), "quiet"),
    ),
  );
}

/** @param {Source} source */
function problems(source) {
  if (!source.problems.length) return null;
  const rest = source.problems.length - MANY_PROBLEMS;
  return h(
    "details",
    { class: "problems" },
    h(
      "summary",
      {},
      icon("warning"),
      h("span", { t: ["documents.problems", { count: source.problems.length }] }),
    ),
    h("ul", {}, ...source.problems.slice(0, MANY_PROBLEMS).map((p) => h("li", {}, p))),
    rest > 0 ? h("p", { class: "hint", t: ["documents.more_problems", { count: rest }] }) : null,
  );
}

/** @param {Source} source */
async function remove(source) {
  const name = fileName(source.path);
  const sure = await confirmDialog(
    "documents.remove",
    ["documents.remove_text", { name }],
    "documents.remove",
  );
  if (sure) await change("DELETE", source.id);
}

/**
 * @param {string} method
 * @param {string} path
 */
async function change(method, path) {
  await attempt(() => call(method, `/api/documents/${path}`));
  await refreshDocuments();
}

function embeddingCard() {
  const embedding = store.documents?.embedding;
  if (!embedding) return null;
  const known = {
    none: h("p", { t: "embedding.none" }),
    ready: h("p", { t: ["embedding.ready", { id: embedding.id ?? "", dim: embedding.dim ?? 0 }] }),
    rebuilding: h("p", { t: "embedding.rebuilding" }),
  };
  return h(
    "section",
    { class: "aside-card" },
    h("h2", { t: "embedding.title" }),
    known[embedding.state] ?? null,
    embedding.state === "rebuilding" && embedding.fraction !== undefined
      ? h("progress", { max: 1, value: embedding.fraction, tLabel: "embedding.title" })
      : null,
    button("embedding.choose", chooseEmbedding),
  );
}

async function chooseEmbedding() {
  const path = await promptDialog(
    "embedding.choose",
    "packs.path",
    store.documents?.embedding.path ?? "",
    "dialog.save",
  );
  if (!path) return;
  await attempt(() => post("/api/documents/embedding", { path }));
  await refreshDocuments();
}
