/**
 * Lists of the host, fetched again after something changed them.
 */

import { get } from "./api.js";
import { attempt } from "./notices.js";
import { update } from "./store.js";

/**
 * @param {string} path
 * @param {"conversations"|"folders"|"assistants"|"prompts"|"documents"} key
 */
async function refresh(path, key) {
  const list = await attempt(() => get(path));
  if (list) update({ [key]: list });
}

export const refreshConversations = () => refresh("/api/conversations", "conversations");
export const refreshFolders = () => refresh("/api/folders", "folders");
export const refreshAssistants = () => refresh("/api/assistants", "assistants");
export const refreshPrompts = () => refresh("/api/prompts", "prompts");
export const refreshDocuments = () => refresh("/api/documents", "documents");

/** Everything that the page shows beside the state. */
export const refreshAll = () =>
  Promise.all([
    refreshConversations(),
    refreshFolders(),
    refreshAssistants(),
    refreshPrompts(),
    refreshDocuments(),
  ]);
