/**
 * What the page knows, in one place, and who wants to hear when it changes.
 */

/** @typedef {import("./types.js").AppState} AppState */
/** @typedef {import("./types.js").Conversation} Conversation */
/**
 * @typedef {object} Store
 * @property {AppState} app the host's state
 * @property {Conversation[]} conversations newest first
 * @property {import("./types.js").Folder[]} folders
 * @property {import("./types.js").Assistant[]} assistants
 * @property {import("./types.js").Prompt[]} prompts
 * @property {import("./types.js").Documents|null} documents
 * @property {string|null} conversation id of the one that is open
 * @property {number|null} speed tokens per second of the last answer of this machine
 */

/** @type {Store} */
const values = {
  app: /** @type {any} */ (null),
  conversations: [],
  folders: [],
  assistants: [],
  prompts: [],
  documents: null,
  conversation: null,
  speed: null,
};
/** @typedef {{keys: (keyof Store)[], run: () => void, owner: Element|null}} Watcher */
/** @type {Set<Watcher>} */
const watchers = new Set();

/** Read-only view of the values. @type {Readonly<Store>} */
export const store = values;

/**
 * Change values and tell those who watch them.
 * @param {Partial<Store>} change
 */
export function update(change) {
  Object.assign(values, change);
  for (const watcher of [...watchers]) {
    if (watcher.owner && !watcher.owner.isConnected) watchers.delete(watcher);
    else if (watcher.keys.some((key) => key in change)) watcher.run();
  }
}

/**
 * Run now and after every change of one of `keys`.
 * @param {(keyof Store)[]} keys
 * @param {() => void} run
 * @param {Element|null} owner the watch ends when this leaves the page; null: never
 */
export function watch(keys, run, owner) {
  watchers.add({ keys, run, owner });
  run();
}

/** Whether the model can be asked now. */
export const ready = () => values.app.engine.state === "ready";
