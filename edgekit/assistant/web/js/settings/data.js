/** Settings of data: where everything lies, what starts by itself, and what is never sent. */

import { button, h } from "../dom.js";
import { quit } from "../quit.js";
import { copyText } from "../rich-text.js";
import { store } from "../store.js";
import { exportAll, pickImport } from "../transfer.js";
import { block, toggle } from "./form.js";

/** Build the section. */
export function dataSection() {
  const { data_folder: folder } = store.app.settings;
  return h(
    "div",
    {},
    block(
      "data.title",
      "data.text",
      h("p", { class: "verbatim boxed" }, folder),
      h(
        "div",
        { class: "button-row" },
        button("data.copy", () => copyText(folder)),
        button("transfer.export_all", exportAll),
        button("transfer.import", pickImport),
      ),
    ),
    block("data.start", null, toggle("autostart"), h("div", {}, button("app.quit", quit))),
    block("data.telemetry", "data.telemetry_text"),
    h("p", { class: "hint version", t: ["data.version", { version: store.app.version }] }),
  );
}
