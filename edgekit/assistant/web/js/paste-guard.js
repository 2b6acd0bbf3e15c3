/**
 * A paste that the model could not read: asks what to do with it instead of freezing the page.
 */

import { upload } from "./api.js";
import { actions, openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { attempt, notice } from "./notices.js";
import { refreshDocuments } from "./refresh.js";
import { store } from "./store.js";

const CHARS_PER_TOKEN = 3;
const SMALLEST_LIMIT = 8000;

/** How many characters fit into half of the model's context. */
function limit() {
  const context = store.app.engine.context_length || 0;
  return Math.max(SMALLEST_LIMIT, Math.floor((context / 2) * CHARS_PER_TOKEN));
}

/**
 * @param {ClipboardEvent} event
 * @param {import("./composer.js").Composer} composer
 */
export async function guardPaste(event, composer) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  const most = limit();
  if (text.length <= most) return;
  event.preventDefault();
  const choice = await openDialog(
    "paste.title",
    (/** @type {(v: string|null) => void} */ close) => [
      h(
        "div",
        { class: "dialog-body" },
        h("p", { t: ["paste.text", { count: text.length, limit: most }] }),
      ),
      actions(
        button("dialog.cancel", () => close(null)),
        button(["paste.part", { limit: most }], () => close("part")),
        button("paste.document", () => close("document"), "primary"),
      ),
    ],
  );
  if (choice === "part") composer.insert(text.slice(0, most));
  else if (choice === "document") await addAsDocument(text);
}

/** @param {string} text */
async function addAsDocument(text) {
  const name = `pasted-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-")}.txt`;
  const added = await attempt(() =>
    upload(`/api/documents/upload?name=${encodeURIComponent(name)}`, new Blob([text])),
  );
  if (!added) return;
  notice(["documents.added", { name }]);
  await refreshDocuments();
}
