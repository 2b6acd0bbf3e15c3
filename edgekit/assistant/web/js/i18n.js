/**
 * Words in the person's language, switchable while the page is open.
 *
 * Text is not written into elements but bound to them: `bind(element, "text", key, params)` writes
 * it now and again whenever the language changes, so a streaming answer, a half-filled form or an
 * open dialog keeps its state. A locale is a flat JSON object of `key: "text with {name}"`; where a
 * sentence counts something, `key.one` and `key.other` stand beside each other and `count` chooses.
 */

/** @typedef {Record<string, string|number|(() => string)>} Params */
/** @typedef {{key: string, params: Params}} Binding */

const LANGUAGES = /** @type {const} */ (["en", "zh-CN"]);
const ATTRIBUTES = /** @type {Record<string, string>} */ ({
  label: "aria-label",
  title: "title",
  placeholder: "placeholder",
  description: "aria-description",
});

/** @type {Record<string, Record<string, string>>} */
const locales = {};
/** @type {WeakMap<Element, Record<string, Binding>>} */
const bindings = new WeakMap();
/** @type {Set<() => void>} */
const listeners = new Set();
let current = "en";

/** The language in use: a BCP 47 tag. */
export const language = () => current;

/**
 * The language for a setting; `auto` follows the browser.
 * @param {string} setting
 */
export function resolve(setting) {
  if (/** @type {readonly string[]} */ (LANGUAGES).includes(setting)) return setting;
  const first = navigator.languages.find((tag) => /^(en|zh)/i.test(tag)) ?? "en";
  return /^zh/i.test(first) ? "zh-CN" : "en";
}

/** Fetch every locale once, so that switching needs no request. */
export async function loadLocales() {
  await Promise.all(
    LANGUAGES.map(async (tag) => {
      locales[tag] = await (await fetch(`locales/${tag}.json`)).json();
    }),
  );
}

/**
 * Use a language for the whole page.
 * @param {string} setting `auto`, `en` or `zh-CN`
 */
export function setLanguage(setting) {
  current = resolve(setting);
  document.documentElement.lang = current;
  for (const element of document.querySelectorAll("[data-i18n]")) write(element);
  for (const listener of listeners) listener();
}

/**
 * Call `listener` after each change of language.
 * @param {() => void} listener
 */
export const onLanguage = (listener) => listeners.add(listener);

/**
 * Whether there are words for a key.
 * @param {string} key
 */
export const has = (key) => key in (locales[current] ?? {});

/**
 * The text of a key.
 * @param {string} key
 * @param {Params} [params]
 */
export function t(key, params = {}) {
  const table = locales[current] ?? {};
  let text = table[key];
  if (text === undefined && typeof params.count === "number") {
    const form = new Intl.PluralRules(current).select(params.count);
    text = table[`${key}.${form}`] ?? table[`${key}.other`];
  }
  if (text === undefined) return key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = params[name];
    if (value === undefined) return whole;
    if (typeof value === "function") return value();
    return typeof value === "number" ? number(value) : value;
  });
}

/**
 * Keep an element's text or one of its attributes in the current language.
 * @param {Element} element
 * @param {string} place `text`, or a key of ATTRIBUTES
 * @param {string} key
 * @param {Params} [params] functions are called again in each language
 */
export function bind(element, place, key, params = {}) {
  const entry = bindings.get(element) ?? {};
  entry[place] = { key, params };
  bindings.set(element, entry);
  element.setAttribute("data-i18n", "");
  writeOne(element, place, entry[place]);
}

/**
 * Leave an element's text or attribute as it is from now on.
 * @param {Element} element
 * @param {string} place
 */
export function unbind(element, place) {
  delete bindings.get(element)?.[place];
}

/** Bind what the HTML file asks for with `data-t`, `data-t-label`, … attributes. */
export function bindMarkup(root = document.documentElement) {
  for (const element of root.querySelectorAll("[data-t]")) {
    bind(element, "text", element.getAttribute("data-t") ?? "");
  }
  for (const place of Object.keys(ATTRIBUTES)) {
    for (const element of root.querySelectorAll(`[data-t-${place}]`)) {
      bind(element, place, element.getAttribute(`data-t-${place}`) ?? "");
    }
  }
}

/** @param {Element} element */
function write(element) {
  for (const [place, binding] of Object.entries(bindings.get(element) ?? {})) {
    writeOne(element, place, binding);
  }
}

/**
 * @param {Element} element
 * @param {string} place
 * @param {Binding} binding
 */
function writeOne(element, place, binding) {
  const text = t(binding.key, binding.params);
  if (place === "text") element.textContent = text;
  else element.setAttribute(ATTRIBUTES[place], text);
}

/**
 * A number as the language writes it.
 * @param {number} value
 * @param {Intl.NumberFormatOptions} [options]
 */
export function number(value, options = { maximumFractionDigits: 1 }) {
  return new Intl.NumberFormat(current, options).format(value);
}

/**
 * A large number, shortened as the language does it: 134.5M, 1.3亿.
 * @param {number} value
 */
export const compact = (value) => number(value, { notation: "compact", maximumFractionDigits: 1 });

/**
 * A size in bytes as a person reads it (powers of 1000).
 * @param {number} bytes
 */
export function size(bytes) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const step = Math.min(3, bytes < 1000 ? 0 : Math.floor(Math.log10(bytes) / 3));
  return number(bytes / 1000 ** step, {
    style: "unit",
    unit: units[step],
    unitDisplay: step ? "short" : "long",
    maximumFractionDigits: 1,
  });
}

/**
 * A time as a person reads it: the hour today, the day otherwise.
 * @param {string} iso
 */
export function when(iso) {
  const time = new Date(iso);
  const today = new Date().toDateString() === time.toDateString();
  return new Intl.DateTimeFormat(
    current,
    today ? { timeStyle: "short" } : { dateStyle: "medium" },
  ).format(time);
}
