/**
 * The cloud teacher's preview: exactly what would leave this computer, before it does.
 */

import { post } from "./api.js";
import { actions, openDialog } from "./dialogs.js";
import { button, fill, h } from "./dom.js";
import { has, t } from "./i18n.js";
import { icon } from "./icons.js";
import { attempt } from "./notices.js";
import { store } from "./store.js";
import { fileName } from "./sources.js";

/** @typedef {import("./types.js").Preview} Preview */

/**
 * Show the preview; gives its id when the person sends it.
 * @param {{conversation_id: string, parent_id: string|null, text: string,
 *   assistant_id?: string}} wish
 * @param {boolean} documents whether passages of documents are offered at first
 * @returns {Promise<string|null>}
 */
export function previewForCloud(wish, documents) {
  const choice = { redact: true, include_history: false, documents };
  /** @type {Preview|null} */
  let preview = null;
  return openDialog(
    "cloud.preview_title",
    (/** @type {(id: string|null) => void} */ close) => {
      const shown = h("div", { class: "preview", "aria-busy": "true" });
      const send = button(
        ["cloud.send", { name: store.app.cloud.name }],
        () => close(preview?.id ?? null),
        "primary",
      );
      let latest = 0;
      const ask = async () => {
        const mine = ++latest;
        send.disabled = true;
        shown.setAttribute("aria-busy", "true");
        const found = await attempt(() => post("/api/cloud/preview", { ...wish, ...choice }));
        if (mine !== latest) return; // the choice has changed meanwhile: never send an older one
        preview = found;
        send.disabled = preview === null;
        fill(shown, preview ? content(preview) : null);
        shown.setAttribute("aria-busy", "false");
      };
      ask();
      return [
        h(
          "div",
          { class: "dialog-body" },
          h("p", { class: "lead", t: "cloud.preview_text" }),
          h(
            "fieldset",
            { class: "checks" },
            h("legend", { t: "cloud.choose" }),
            ...Object.keys(choice).map((key) =>
              check(/** @type {keyof typeof choice} */ (key), choice, ask),
            ),
          ),
          shown,
        ),
        actions(
          button("cloud.dont_send", () => close(null)),
          send,
        ),
      ];
    },
    { wide: true },
  );
}

/**
 * @template {string} K
 * @param {K} key
 * @param {Record<K, boolean>} choice
 * @param {() => void} changed
 */
function check(key, choice, changed) {
  const box = h("input", {
    type: "checkbox",
    checked: choice[key],
    onchange: () => {
      choice[key] = box.checked;
      changed();
    },
  });
  return h("label", { class: "check" }, box, h("span", { t: `cloud.option.${key}` }));
}

/** @param {Preview} preview */
function content(preview) {
  const kept = preview.redactions.length ? [] : preview.found;
  return [
    h(
      "dl",
      { class: "facts" },
      h("dt", { t: "cloud.goes_to" }),
      h("dd", { class: "verbatim" }, preview.url),
      h("dt", { t: "cloud.amount" }),
      h("dd", { t: ["cloud.bytes", { count: preview.bytes }] }),
      h("dt", { t: "cloud.redacted" }),
      preview.redactions.length
        ? counts(preview.redactions, "on")
        : h("dd", { t: "cloud.redacted_nothing" }),
      kept.length ? [h("dt", { t: "cloud.goes_as_is" }), counts(kept, "warn")] : null,
    ),
    h("h3", { t: "cloud.parts" }),
    h("ol", { class: "parts" }, ...preview.parts.map(part)),
    h(
      "details",
      { class: "exact", open: true },
      h("summary", { t: "cloud.exact" }),
      h("pre", { tabindex: 0, tLabel: "cloud.exact" }, preview.body),
      h("p", { class: "hint verbatim" }, `SHA-256 ${preview.sha256}`),
    ),
  ];
}

/**
 * What of which kind was found, and how often.
 * @param {{kind: string, count: number}[]} found
 * @param {"on"|"warn"} style
 */
function counts(found, style) {
  const pills = found.map((r) =>
    h("span", {
      class: `pill ${style}`,
      t: ["cloud.redaction", { kind: () => redaction(r.kind), times: r.count }],
    }),
  );
  return h("dd", {}, ...pills);
}

/** @param {string} kind */
const redaction = (kind) => (has(`redaction.${kind}`) ? t(`redaction.${kind}`) : kind);

/** @param {import("./types.js").PreviewPart} part */
function part(part) {
  const name =
    part.kind === "passage"
      ? ["cloud.part.passage", { file: fileName(part.file ?? "") }]
      : `cloud.part.${part.kind}`;
  return h(
    "li",
    { class: `part ${part.kind}` },
    h(
      "span",
      { class: "part-kind" },
      icon(part.kind === "passage" ? "documents" : part.kind === "you" ? "person" : "info"),
      h("span", { t: name }),
    ),
    h("span", { class: "part-text" }, part.text),
  );
}
