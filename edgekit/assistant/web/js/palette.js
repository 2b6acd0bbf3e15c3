/**
 * The command palette (Ctrl+K): every action and conversation by name, from the keyboard.
 */

import { attempt } from "./notices.js";
import { call } from "./api.js";
import { assistantName } from "./assistants.js";
import { openDialog } from "./dialogs.js";
import { showReasons } from "./device-line.js";
import { fill, h } from "./dom.js";
import { newFolder } from "./history-actions.js";
import { icon } from "./icons.js";
import { quit } from "./quit.js";
import { go } from "./router.js";
import { store } from "./store.js";
import { exportAll, pickImport } from "./transfer.js";

/** @typedef {{element: HTMLElement, icon: import("./icons.js").IconName, run: () => void}} Command */

const SHOWN = 12;

/** @type {(id: string) => void} */
let useAssistant = () => {};

/**
 * Say how another assistant is taken: that concerns the open conversation.
 * @param {(id: string) => void} use
 */
export function onAssistant(use) {
  useAssistant = use;
}

/** @param {string} words @param {import("./icons.js").IconName} name @param {() => void} run */
const command = (words, name, run) => ({ element: h("span", { t: words }), icon: name, run });

/** @returns {Command[]} */
function commands() {
  /** @param {object} change */
  const set = (change) => () => attempt(() => call("PUT", "/api/settings", change));
  return [
    command("chat.new", "plus", () => go("")),
    command("documents.title", "documents", () => go("documents")),
    command("settings.title", "settings", () => go("settings/model")),
    command("device.title", "device", () => showReasons()),
    command("cloud.title", "cloud", () => go("settings/cloud")),
    command("mcp.title", "tool", () => go("settings/tools")),
    command("assistants.title", "person", () => go("settings/assistants")),
    command("prompts.title", "book", () => go("settings/prompts")),
    command("folder.new", "folder", newFolder),
    command("transfer.import", "upload", pickImport),
    command("transfer.export_all", "download", exportAll),
    command("app.quit", "close", quit),
    command("palette.english", "edit", set({ language: "en" })),
    command("palette.chinese", "edit", set({ language: "zh-CN" })),
    command("palette.light", "bolt", set({ theme: "light" })),
    command("palette.dark", "bolt", set({ theme: "dark" })),
    ...store.assistants.map((a) => ({
      element: assistantName(a),
      icon: /** @type {const} */ ("person"),
      run: () => useAssistant(a.id),
    })),
    ...store.conversations.map((c) => ({
      element: h("span", {}, c.title),
      icon: /** @type {const} */ ("file"),
      run: () => go(`c/${c.id}`),
    })),
  ];
}

/** Open the palette; the chosen command runs after it has closed. */
export async function openPalette() {
  const all = commands();
  /** @type {Command[]} */
  let shown = [];
  let at = 0;
  const chosen = await openDialog(
    "palette.title",
    (/** @type {(c: Command|null) => void} */ close) => {
      const list = h("ul", {
        class: "palette-list",
        role: "listbox",
        id: "palette-list",
        tLabel: "palette.title",
      });
      const field = h("input", {
        type: "text",
        class: "palette-field",
        role: "combobox",
        autofocus: true,
        autocomplete: "off",
        "aria-controls": "palette-list",
        "aria-expanded": "true",
        "aria-autocomplete": "list",
        tLabel: "palette.label",
        tPlaceholder: "palette.placeholder",
      });
      const draw = () => {
        const wanted = field.value.trim().toLowerCase();
        shown = all
          .filter((c) => (c.element.textContent ?? "").toLowerCase().includes(wanted))
          .slice(0, SHOWN);
        at = Math.min(at, Math.max(0, shown.length - 1));
        fill(list, ...shown.map((c, i) => option(c, i, i === at, () => close(c))));
        if (shown.length) field.setAttribute("aria-activedescendant", `palette-${at}`);
        else {
          field.removeAttribute("aria-activedescendant");
          fill(
            list,
            h("li", {
              class: "hint",
              role: "option",
              "aria-disabled": "true",
              "aria-selected": "false",
              t: "palette.none",
            }),
          );
        }
      };
      field.addEventListener("input", () => {
        at = 0;
        draw();
      });
      field.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "ArrowDown") at = (at + 1) % Math.max(1, shown.length);
        else if (event.key === "ArrowUp") at = (at - 1 + shown.length) % Math.max(1, shown.length);
        else if (event.key === "Enter" && shown[at]) return close(shown[at]);
        else return;
        event.preventDefault();
        draw();
      });
      draw();
      return [h("div", { class: "palette" }, field, list)];
    },
  );
  chosen?.run();
}

/**
 * @param {Command} command
 * @param {number} index
 * @param {boolean} selected
 * @param {() => void} onclick
 */
function option(command, index, selected, onclick) {
  return h(
    "li",
    {
      id: `palette-${index}`,
      role: "option",
      class: "palette-item",
      "aria-selected": String(selected),
      onclick,
    },
    icon(command.icon),
    command.element,
  );
}
