/**
 * Keys that work everywhere: Ctrl+K palette, Ctrl+N new, Esc stop, `/` to write.
 *
 * A browser keeps Ctrl+N for itself; in the assistant's own window it arrives here. Alt+N works in
 * both.
 */

import { openPalette } from "./palette.js";
import { go } from "./router.js";
import { toggleSidebar } from "./sidebar.js";

/**
 * @typedef {object} Page
 * @property {() => boolean} stop stop an answer; false when none runs
 * @property {() => void} write put the cursor into the composer
 */

/** @param {Page} page */
export function installShortcuts(page) {
  addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const ctrl = event.ctrlKey || event.metaKey;
    const inDialog = document.querySelector("dialog[open]") !== null;
    if (inDialog) return;
    if (ctrl && event.key.toLowerCase() === "k") openPalette();
    else if ((ctrl || event.altKey) && event.key.toLowerCase() === "n") go("");
    else if (event.key === "Escape") {
      if (document.body.classList.contains("sidebar-open")) toggleSidebar(false);
      else if (!page.stop()) return;
    } else if (event.key === "/" && !writing(event.target)) page.write();
    else return;
    event.preventDefault();
  });
}

/** @param {EventTarget|null} target */
function writing(target) {
  return (
    target instanceof HTMLElement && target.matches("input, textarea, select, [contenteditable]")
  );
}
