/**
 * Menus that open under a button: arrow keys move, Enter chooses, Escape goes back to the button.
 */

import { h } from "./dom.js";
import { icon } from "./icons.js";

/** @typedef {import("./dom.js").Words} Words */
/**
 * @typedef {object} MenuItem
 * @property {Words} [words] a label from the locale
 * @property {string} [label] a label that is data
 * @property {string} [detail] a second, quieter line
 * @property {Words} [detailWords] the same from the locale
 * @property {import("./icons.js").IconName} [icon]
 * @property {boolean} [checked] given: the item is one of a choice
 * @property {boolean} [disabled]
 * @property {boolean} [danger]
 * @property {boolean} [divider] a line above it
 * @property {() => void} run
 */

/** @type {(() => void)|null} */
let closeOpen = null;

/**
 * Open a menu beside a button; a second call on the same button closes it.
 * @param {HTMLElement} anchor
 * @param {Words} label of the menu
 * @param {MenuItem[]} items
 */
export function openMenu(anchor, label, items) {
  const wasOpen = anchor.getAttribute("aria-expanded") === "true";
  closeOpen?.();
  if (wasOpen) return;
  const menu = h(
    "div",
    { class: "menu", role: "menu", tLabel: label },
    ...items.map((i) => entry(i, close)),
  );
  const buttons = [...menu.querySelectorAll("button")];

  /** @param {boolean} [focusBack] */
  function close(focusBack = true) {
    if (closeOpen !== closeThis) return;
    closeOpen = null;
    menu.remove();
    anchor.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside, true);
    removeEventListener("resize", closeThis);
    if (focusBack && anchor.isConnected) anchor.focus();
  }
  const closeThis = () => close(false);
  /** @param {Event} event */
  const outside = (event) => {
    const target = /** @type {Node} */ (event.target);
    if (!menu.contains(target) && !anchor.contains(target)) close(false);
  };

  closeOpen = closeThis;
  anchor.setAttribute("aria-expanded", "true");
  anchor.setAttribute("aria-haspopup", "menu");
  // where the button is: a modal dialog makes what lies outside of it unreachable
  (anchor.closest("dialog, main, aside") ?? document.body).append(menu);
  place(menu, anchor);
  document.addEventListener("pointerdown", outside, true);
  addEventListener("resize", closeThis);
  menu.addEventListener("keydown", (event) => onKey(event, buttons, close));
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget instanceof Node && !menu.contains(event.relatedTarget)) close(false);
  });
  (buttons.find((b) => b.getAttribute("aria-checked") === "true") ?? buttons[0])?.focus();
}

/**
 * @param {MenuItem} item
 * @param {() => void} close
 */
function entry(item, close) {
  const chosen = item.checked !== undefined;
  const detail = item.detailWords
    ? h("span", { class: "menu-detail", t: item.detailWords })
    : item.detail
      ? h("span", { class: "menu-detail" }, item.detail)
      : null;
  return h(
    "button",
    {
      type: "button",
      class: `menu-item${item.danger ? " danger" : ""}${item.divider ? " divided" : ""}`,
      role: chosen ? "menuitemradio" : "menuitem",
      tabindex: -1,
      "aria-checked": chosen ? String(item.checked) : undefined,
      "aria-disabled": item.disabled ? "true" : undefined,
      onclick: () => {
        if (item.disabled) return;
        close();
        item.run();
      },
    },
    h(
      "span",
      { class: "menu-mark" },
      chosen ? item.checked && icon("check") : item.icon && icon(item.icon),
    ),
    h(
      "span",
      { class: "menu-words" },
      item.words ? h("span", { t: item.words }) : h("span", {}, item.label ?? ""),
      detail,
    ),
  );
}

/**
 * Put the menu where it fits: under the button or above it, inside the window.
 * @param {HTMLElement} menu
 * @param {HTMLElement} anchor
 */
function place(menu, anchor) {
  const box = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const margin = 8;
  const below = box.bottom + 4 + height <= innerHeight - margin;
  const top = below ? box.bottom + 4 : Math.max(margin, box.top - 4 - height);
  const left = Math.min(Math.max(margin, box.left), innerWidth - width - margin);
  menu.style.setProperty("--menu-top", `${top}px`);
  menu.style.setProperty("--menu-left", `${Math.max(margin, left)}px`);
}

/**
 * @param {KeyboardEvent} event
 * @param {HTMLElement[]} buttons
 * @param {() => void} close
 */
function onKey(event, buttons, close) {
  const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const moves = /** @type {Record<string, number>} */ ({
    ArrowDown: (at + 1) % buttons.length,
    ArrowUp: (at - 1 + buttons.length) % buttons.length,
    Home: 0,
    End: buttons.length - 1,
  });
  if (event.key in moves) buttons[moves[event.key]]?.focus();
  else if (event.key === "Escape" || event.key === "Tab") close();
  else return;
  if (event.key !== "Tab") event.preventDefault();
  event.stopPropagation();
}
