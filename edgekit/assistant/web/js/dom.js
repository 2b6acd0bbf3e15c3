/**
 * Elements from JavaScript: one builder, no markup strings.
 *
 * `h("button", {class: "quiet", t: "chat.stop", onclick: stop})`. Text comes from the locale (`t`),
 * from data (children that are strings become text nodes) and never from markup. HTML is taken only
 * from the host's sanitiser, by `setHtml`.
 */

import { bind, unbind } from "./i18n.js";

/** @typedef {import("./i18n.js").Params} Params */
/** @typedef {string|[string, Params]} Words a key, or a key and its parameters */
/** @typedef {Node|string|null|undefined|false|Child[]} Child */

const BOUND = /** @type {Record<string, string>} */ ({
  t: "text",
  tLabel: "label",
  tTitle: "title",
  tPlaceholder: "placeholder",
  tDescription: "description",
});
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "indeterminate"]);

/**
 * Build an element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [props] `t…` bind words, `on…` listen, the rest are attributes
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in BOUND) words(element, BOUND[name], value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) /** @type {any} */ (element)[name] = value;
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/**
 * @param {Element} element
 * @param {string} place
 * @param {Words} value
 */
function words(element, place, value) {
  if (typeof value === "string") bind(element, place, value);
  else bind(element, place, value[0], value[1]);
}

/**
 * Change an element's text to other words.
 * @param {Element} element
 * @param {string} key
 * @param {Params} [params]
 */
export function say(element, key, params) {
  bind(element, "text", key, params);
}

/**
 * Change an element's text to data, which no language changes.
 * @param {Element} element
 * @param {string} text
 */
export function plain(element, text) {
  unbind(element, "text");
  element.textContent = text;
}

/**
 * @param {Node} parent
 * @param {Child[]} children
 */
function append(parent, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(parent, child);
    else parent.appendChild(typeof child === "string" ? document.createTextNode(child) : child);
  }
}

/**
 * Replace what an element contains.
 * @param {Element} element
 * @param {...Child} children
 */
export function fill(element, ...children) {
  const fragment = document.createDocumentFragment();
  append(fragment, children);
  element.replaceChildren(fragment);
}

/**
 * Put sanitised HTML of the host into an element.
 * @param {Element} element
 * @param {string} html from `block.html` or `message.html`, nothing else
 */
export function setHtml(element, html) {
  element.innerHTML = html;
}

/**
 * An element that must be in the page.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`#${id}`);
  return element;
}

/**
 * A text button.
 * @param {Words} label
 * @param {(event: MouseEvent) => void} onclick
 * @param {string} [style] `primary`, `danger`, `quiet` or nothing
 */
export function button(label, onclick, style = "") {
  return h("button", { type: "button", class: `button ${style}`.trim(), t: label, onclick });
}
