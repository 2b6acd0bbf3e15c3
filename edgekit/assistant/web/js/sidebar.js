/**
 * The sidebar: new conversation, search, the history by folder, and the ways to the other views.
 */

import { byId, fill, h } from "./dom.js";
import { when } from "./i18n.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { conversationMenu, folderMenu, newFolder } from "./history-actions.js";
import { openPalette } from "./palette.js";
import { go, route } from "./router.js";
import { searchResults } from "./search.js";
import { store, watch } from "./store.js";
import { pickImport, exportAll } from "./transfer.js";

/** @typedef {import("./types.js").Conversation} Conversation */

/** @type {Set<string>} folders that are folded */
const folded = new Set();

/** Build the sidebar's content. */
export function sidebar() {
  const list = h("div", { class: "history" });
  const results = h("div", {
    class: "results",
    role: "region",
    tLabel: "search.results",
    hidden: true,
  });
  const search = h("input", {
    type: "search",
    id: "search",
    class: "search",
    autocomplete: "off",
    spellcheck: "false",
    tLabel: "search.label",
    tPlaceholder: "search.placeholder",
  });
  searchResults(search, results, list);
  const element = h(
    "div",
    { class: "sidebar-inner" },
    h(
      "div",
      { class: "sidebar-head" },
      h(
        "span",
        { class: "wordmark" },
        h("span", { class: "wordmark-dot", "aria-hidden": "true" }),
        h("span", { t: "app.name" }),
      ),
      iconButton("bolt", "palette.open", () => openPalette()),
      historyButton(),
      iconButton("close", "sidebar.close", () => toggleSidebar(false), "only-narrow"),
    ),
    h(
      "button",
      { type: "button", class: "new-chat", tTitle: "chat.new_hint", onclick: () => go("") },
      icon("plus"),
      h("span", { t: "chat.new" }),
    ),
    h("div", { class: "search-box" }, icon("search"), search),
    results,
    list,
    h(
      "nav",
      { class: "sidebar-foot", tLabel: "sidebar.views" },
      viewLink("documents", "documents", "documents.title"),
      viewLink("settings", "settings", "settings.title"),
    ),
  );
  watch(["conversations", "folders", "conversation"], () => draw(list), element);
  addEventListener("hashchange", () => draw(list));
  return element;
}

/**
 * Open or close the sidebar where it lies over the page.
 * @param {boolean} open
 */
export function toggleSidebar(open) {
  document.body.classList.toggle("sidebar-open", open);
  const narrow = matchMedia("(max-width: 52rem)").matches;
  byId("main").toggleAttribute("inert", open && narrow);
  if (open) byId("search").focus();
  else if (narrow) byId("open-sidebar").focus();
}

/** @param {HTMLElement} list */
function draw(list) {
  const { conversations, folders } = store;
  const pinned = conversations.filter((c) => c.pinned);
  const loose = conversations.filter(
    (c) => !c.pinned && !folders.some((f) => f.id === c.folder_id),
  );
  const sections = [
    pinned.length ? section(h("h2", { class: "group-title", t: "history.pinned" }), pinned) : null,
    ...folders.map((folder) =>
      folderSection(
        folder,
        conversations.filter((c) => !c.pinned && c.folder_id === folder.id),
      ),
    ),
    loose.length || conversations.length === 0
      ? section(h("h2", { class: "group-title", t: "history.recent" }), loose)
      : null,
  ];
  const focused = /** @type {HTMLElement|null} */ (document.activeElement)?.dataset.key;
  fill(list, ...sections);
  if (focused)
    /** @type {HTMLElement|null} */ (list.querySelector(`[data-key="${focused}"]`))?.focus();
}

/**
 * @param {HTMLElement} title
 * @param {Conversation[]} conversations
 */
function section(title, conversations) {
  return h(
    "section",
    { class: "group" },
    title,
    conversations.length
      ? h("ul", {}, ...conversations.map(row))
      : h("p", { class: "hint", t: "history.empty" }),
  );
}

/**
 * @param {import("./types.js").Folder} folder
 * @param {Conversation[]} conversations
 */
function folderSection(folder, conversations) {
  const open = !folded.has(folder.id);
  const fold = h(
    "button",
    {
      type: "button",
      class: "folder-name",
      "aria-expanded": String(open),
      "data-key": `folder-${folder.id}`,
      onclick: () => {
        if (open) folded.add(folder.id);
        else folded.delete(folder.id);
        const next = folderSection(folder, conversations);
        element.replaceWith(next);
        next.querySelector("button")?.focus();
      },
    },
    icon(open ? "down" : "right"),
    h("span", {}, folder.name),
  );
  const element = h(
    "section",
    { class: "group" },
    h(
      "div",
      { class: "group-row" },
      h("h2", { class: "group-title" }, fold),
      moreButton(["folder.more", { name: folder.name }], (anchor) =>
        openMenu(anchor, "folder.menu", folderMenu(folder)),
      ),
    ),
    open
      ? conversations.length
        ? h("ul", {}, ...conversations.map(row))
        : h("p", { class: "hint", t: "folder.empty" })
      : null,
  );
  return element;
}

/** @param {Conversation} conversation */
function row(conversation) {
  const here = store.conversation === conversation.id && route().name === "chat";
  const name = conversation.title
    ? h("span", { class: "row-title" }, conversation.title)
    : h("span", { class: "row-title", t: "chat.new" });
  return h(
    "li",
    { class: "row" },
    h(
      "a",
      {
        href: `#/c/${conversation.id}`,
        class: "row-link",
        "data-key": conversation.id,
        "aria-current": here ? "page" : undefined,
        title: conversation.title,
      },
      conversation.pinned ? icon("pin") : null,
      name,
      h("span", {
        class: "row-time",
        t: ["history.time", { time: () => when(conversation.updated) }],
      }),
    ),
    moreButton(["history.more", { title: conversation.title }], (anchor) =>
      openMenu(anchor, "history.menu", conversationMenu(conversation)),
    ),
  );
}

/**
 * @param {import("./dom.js").Words} label
 * @param {(anchor: HTMLElement) => void} open
 */
function moreButton(label, open) {
  const button = h(
    "button",
    {
      type: "button",
      class: "icon-button small row-more",
      tLabel: label,
      "aria-haspopup": "menu",
      "aria-expanded": "false",
      onclick: () => open(button),
    },
    icon("more"),
  );
  return button;
}

/** The menu that concerns the whole history. */
function historyButton() {
  const button = iconButton("more", "history.all", () =>
    openMenu(button, "history.all", [
      { words: "folder.new", icon: "folder", run: newFolder },
      { words: "transfer.import", icon: "upload", run: pickImport },
      { words: "transfer.export_all", icon: "download", run: exportAll },
    ]),
  );
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  return button;
}

/**
 * @param {"documents"|"settings"} path
 * @param {import("./icons.js").IconName} name
 * @param {string} words
 */
function viewLink(path, name, words) {
  const link = h(
    "a",
    { href: `#/${path}`, class: "view-link" },
    icon(name),
    h("span", { t: words }),
  );
  const mark = () => {
    if (route().name === path) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  };
  addEventListener("hashchange", mark);
  mark();
  return link;
}

/**
 * @param {import("./icons.js").IconName} name
 * @param {string} label
 * @param {() => void} onclick
 * @param {string} [more]
 */
function iconButton(name, label, onclick, more = "") {
  return h(
    "button",
    { type: "button", class: `icon-button ${more}`.trim(), tLabel: label, tTitle: label, onclick },
    icon(name),
  );
}
