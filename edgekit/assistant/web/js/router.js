/**
 * Which view is open, kept in the address after `#/` so that back and forward work.
 *
 * `#/` a new conversation, `#/c/ID` one of the history, `#/c/ID/MESSAGE` at a message, `#/documents`,
 * `#/settings/SECTION`, `#/welcome`.
 */

/** @typedef {{name: "chat"|"documents"|"settings"|"welcome", id: string|null, part: string|null}} Route */

/** @returns {Route} */
export function route() {
  const [name, id, part] = location.hash.replace(/^#\/?/, "").split("/");
  if (name === "documents" || name === "welcome") return { name, id: null, part: null };
  if (name === "settings") return { name, id: id || "model", part: null };
  return { name: "chat", id: name === "c" && id ? id : null, part: part ?? null };
}

/**
 * @param {string} path after `#/`
 */
export function go(path) {
  const hash = `#/${path}`;
  if (location.hash === hash) dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = hash;
}

/**
 * Change the address without opening anything: a new conversation has got its id.
 * @param {string} path after `#/`
 */
export function rename(path) {
  history.replaceState(null, "", `#/${path}`);
}

/** @param {(route: Route) => void} open */
export function onRoute(open) {
  addEventListener("hashchange", () => open(route()));
}
