/**
 * Conversations out of the program and back in: Markdown for people, JSON for everything.
 */

import { post } from "./api.js";
import { h } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { refreshConversations, refreshFolders } from "./refresh.js";

/**
 * Let the browser save what the host sends.
 * @param {string} path
 */
export function download(path) {
  const link = h("a", { href: path, download: true });
  document.body.append(link);
  link.click();
  link.remove();
}

export const exportAll = () => download("/api/export");

/** Choose a file and import it; its name says which format it has. */
export function pickImport() {
  const input = h("input", {
    type: "file",
    accept: ".json,.md,.markdown,application/json,text/markdown",
  });
  input.addEventListener("change", async () => {
    const file = input.files?.[0];
    if (!file) return;
    const text = await file.text();
    const format = /\.json$/i.test(file.name) ? "json" : "markdown";
    const result = await attempt(() => post("/api/import", { format, text }));
    if (!result) return;
    notice(["transfer.imported", { count: result.imported }]);
    await Promise.all([refreshFolders(), refreshConversations()]);
  });
  input.click();
}
