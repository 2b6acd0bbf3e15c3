/**
 * A conversation is a tree: an edited question or a second answer is a branch beside the first.
 *
 * The page shows one path from the root to a leaf. Which one: at each fork the branch that was
 * chosen, otherwise the newest.
 */

/** @typedef {import("./types.js").Message} Message */
/** @typedef {Map<string|null, string>} Choices parent id → the child that is shown */

/**
 * Messages by parent, each list by creation.
 * @param {Message[]} messages
 * @returns {Map<string|null, Message[]>}
 */
export function childrenOf(messages) {
  const known = new Set(messages.map((m) => m.id));
  /** @type {Map<string|null, Message[]>} */
  const children = new Map();
  for (const message of messages) {
    const parent = message.parent_id && known.has(message.parent_id) ? message.parent_id : null;
    children.set(parent, [...(children.get(parent) ?? []), message]);
  }
  return children;
}

/**
 * The path that is shown, root first.
 * @param {Message[]} messages by creation
 * @param {Choices} choices
 * @returns {Message[]}
 */
export function shownPath(messages, choices) {
  const children = childrenOf(messages);
  const newest = newestBelow(messages);
  /** @param {Message} m */
  const age = (m) => newest.get(m.id) ?? 0;
  /** @type {Message[]} */
  const path = [];
  let options = children.get(null) ?? [];
  while (options.length) {
    const wanted = choices.get(path.at(-1)?.id ?? null);
    const next =
      options.find((m) => m.id === wanted) ??
      options.reduce((best, m) => (age(m) > age(best) ? m : best));
    path.push(next);
    options = children.get(next.id) ?? [];
  }
  return path;
}

/**
 * For each message the place in the list of the newest one in its branch. Places, not times: a
 * clock may have been set back between two messages.
 * @param {Message[]} messages by creation, so that children stand behind their parents
 */
function newestBelow(messages) {
  const newest = new Map(messages.map((m, place) => [m.id, place]));
  for (const message of [...messages].reverse()) {
    const parent = message.parent_id;
    const place = newest.get(message.id) ?? 0;
    if (parent && (newest.get(parent) ?? Infinity) < place) newest.set(parent, place);
  }
  return newest;
}

/**
 * The messages that share a parent with this one, itself included.
 * @param {Message[]} messages
 * @param {Message} message
 */
export function siblings(messages, message) {
  return messages.filter((m) => m.parent_id === message.parent_id && m.role === message.role);
}

/**
 * Choices that lead to a message: what search and links need.
 * @param {Message[]} messages
 * @param {string} id
 * @returns {Choices}
 */
export function choicesTo(messages, id) {
  const byId = new Map(messages.map((m) => [m.id, m]));
  /** @type {Choices} */
  const choices = new Map();
  for (let m = byId.get(id); m; m = m.parent_id ? byId.get(m.parent_id) : undefined) {
    choices.set(m.parent_id, m.id);
  }
  return choices;
}
