/**
 * What can be done with a conversation or a folder of the history.
 */

import { call, post } from "./api.js";
import { confirmDialog, promptDialog } from "./dialogs.js";
import { attempt, notice } from "./notices.js";
import { refreshConversations, refreshFolders } from "./refresh.js";
import { go } from "./router.js";
import { store } from "./store.js";
import { download } from "./transfer.js";

/** @typedef {import("./types.js").Conversation} Conversation */
/** @typedef {import("./types.js").Folder} Folder */
/** @typedef {import("./menu.js").MenuItem} MenuItem */

/**
 * @param {Conversation} conversation
 * @param {object} change
 */
async function patch(conversation, change) {
  await attempt(() => call("PATCH", `/api/conversations/${conversation.id}`, change));
  await refreshConversations();
}

/**
 * @param {Conversation} conversation
 * @returns {MenuItem[]}
 */
export function conversationMenu(conversation) {
  const path = `/api/conversations/${conversation.id}/export?format=`;
  return [
    { words: "history.rename", icon: "edit", run: () => renameConversation(conversation) },
    {
      words: conversation.pinned ? "history.unpin" : "history.pin",
      icon: "pin",
      run: () => patch(conversation, { pinned: !conversation.pinned }),
    },
    ...moves(conversation),
    {
      words: "transfer.markdown",
      icon: "download",
      divider: true,
      run: () => download(`${path}markdown`),
    },
    { words: "transfer.json", icon: "download", run: () => download(`${path}json`) },
    {
      words: "history.delete",
      icon: "trash",
      danger: true,
      divider: true,
      run: () => deleteConversation(conversation),
    },
  ];
}

/**
 * @param {Conversation} conversation
 * @returns {MenuItem[]}
 */
function moves(conversation) {
  const others = store.folders.filter((f) => f.id !== conversation.folder_id);
  return [
    ...others.map((folder, i) => ({
      words: /** @type {[string, {name: string}]} */ (["folder.move", { name: folder.name }]),
      icon: /** @type {const} */ ("folder"),
      divider: i === 0,
      run: () => patch(conversation, { folder_id: folder.id }),
    })),
    ...(conversation.folder_id
      ? [
          {
            words: "folder.take_out",
            icon: /** @type {const} */ ("folder"),
            run: () => patch(conversation, { folder_id: null }),
          },
        ]
      : []),
  ];
}

/** @param {Conversation} conversation */
export async function renameConversation(conversation) {
  const title = await promptDialog(
    "history.rename",
    "history.title",
    conversation.title,
    "dialog.save",
  );
  if (title) await patch(conversation, { title });
}

/** @param {Conversation} conversation */
export async function deleteConversation(conversation) {
  const title = conversation.title;
  const sure = await confirmDialog(
    "history.delete",
    ["history.delete_text", { title }],
    "history.delete_action",
    {
      danger: true,
    },
  );
  if (!sure) return;
  const done = await attempt(async () => {
    await call("DELETE", `/api/conversations/${conversation.id}`);
    return true;
  });
  if (!done) return;
  notice("history.deleted");
  if (store.conversation === conversation.id) go("");
  await refreshConversations();
}

/** Make a folder. */
export async function newFolder() {
  const name = await promptDialog("folder.new", "folder.name", "", "dialog.save");
  if (!name) return;
  await attempt(() => post("/api/folders", { name }));
  await refreshFolders();
}

/**
 * @param {Folder} folder
 * @returns {MenuItem[]}
 */
export function folderMenu(folder) {
  return [
    { words: "history.rename", icon: "edit", run: () => renameFolder(folder) },
    {
      words: "folder.delete",
      icon: "trash",
      danger: true,
      divider: true,
      run: () => deleteFolder(folder),
    },
  ];
}

/** @param {Folder} folder */
async function renameFolder(folder) {
  const name = await promptDialog("history.rename", "folder.name", folder.name, "dialog.save");
  if (!name) return;
  await attempt(() => call("PATCH", `/api/folders/${folder.id}`, { name }));
  await refreshFolders();
}

/** @param {Folder} folder */
async function deleteFolder(folder) {
  const sure = await confirmDialog(
    "folder.delete",
    ["folder.delete_text", { name: folder.name }],
    "folder.delete",
    {
      danger: true,
    },
  );
  if (!sure) return;
  await attempt(() => call("DELETE", `/api/folders/${folder.id}`));
  await Promise.all([refreshFolders(), refreshConversations()]);
}
