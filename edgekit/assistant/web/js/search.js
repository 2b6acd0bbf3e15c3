/**
 * Search in the history while one types; the marks show what was found, two Chinese characters
 * suffice.
 */

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { attempt } from "./notices.js";
import { go } from "./router.js";

/** @typedef {import("./types.js").Hit} Hit */

const PAUSE_MS = 150;

/**
 * Connect the field with the list of results, which takes the history's place.
 * @param {HTMLInputElement} field
 * @param {HTMLElement} results
 * @param {HTMLElement} list
 */
export function searchResults(field, results, list) {
  let wait = 0;
  let latest = 0;
  const show = async () => {
    const query = field.value.trim();
    const mine = ++latest;
    const hits = query
      ? await attempt(() => get(`/api/search?q=${encodeURIComponent(query)}`))
      : [];
    if (mine !== latest) return; // a newer search has begun
    results.hidden = !query;
    list.hidden = Boolean(query);
    fill(results, query ? found(hits ?? []) : null);
  };
  field.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(show, PAUSE_MS);
  });
  field.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape" && field.value) {
      field.value = "";
      show();
      event.stopPropagation();
    } else if (event.key === "ArrowDown" || event.key === "Enter") {
      /** @type {HTMLElement|null} */ (results.querySelector(".hit"))?.focus();
      event.preventDefault();
    }
  });
  results.addEventListener("keydown", (event) => move(event, results, field));
}

/** @param {Hit[]} hits */
function found(hits) {
  return [
    h("p", {
      class: "hint",
      role: "status",
      t: hits.length ? ["search.count", { count: hits.length }] : "search.none",
    }),
    h("ul", {}, ...hits.map((hit) => h("li", {}, row(hit)))),
  ];
}

/**
 * A message that was found, under its conversation's title; or a title, which needs no second line.
 * @param {Hit} hit
 */
function row(hit) {
  const snippet = marked(hit.snippet, hit.marks);
  const title = hit.title
    ? h("span", { class: "hit-title" }, hit.title)
    : h("span", { class: "hit-title", t: "chat.new" });
  const path = hit.message_id
    ? `c/${hit.conversation_id}/${hit.message_id}`
    : `c/${hit.conversation_id}`;
  return h(
    "button",
    { type: "button", class: "hit", onclick: () => go(path) },
    hit.message_id
      ? [title, h("span", { class: "hit-text" }, ...snippet)]
      : h("span", { class: "hit-title" }, ...snippet),
  );
}

/**
 * The snippet with its marks; offsets count code points.
 * @param {string} text
 * @param {[number, number][]} marks
 */
export function marked(text, marks) {
  const points = Array.from(text);
  /** @type {(string|HTMLElement)[]} */
  const parts = [];
  let end = 0;
  for (const [from, to] of marks) {
    parts.push(points.slice(end, from).join(""), h("mark", {}, points.slice(from, to).join("")));
    end = to;
  }
  return [...parts, points.slice(end).join("")];
}

/**
 * @param {KeyboardEvent} event
 * @param {HTMLElement} results
 * @param {HTMLElement} field
 */
function move(event, results, field) {
  const rows = /** @type {HTMLElement[]} */ ([...results.querySelectorAll(".hit")]);
  const at = rows.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  if (event.key === "ArrowDown") rows[at + 1]?.focus();
  else if (event.key === "ArrowUp") (rows[at - 1] ?? field).focus();
  else if (event.key === "Escape") field.focus();
  else return;
  event.preventDefault();
  event.stopPropagation();
}
