/**
 * Adding a model: by the system's dialog where there is one, by its path otherwise.
 */

import { ApiError, post } from "./api.js";
import { promptDialog } from "./dialogs.js";
import { failed, notice } from "./notices.js";

/**
 * Choose a pack and load it; gives whether one was added.
 * @returns {Promise<boolean>}
 */
export async function addPack() {
  try {
    const pack = await pick();
    if (!pack) return false;
    notice(["packs.added", { name: pack.name }]);
    await post("/api/engine", { pack: pack.path });
    return true;
  } catch (error) {
    failed(error);
    return false;
  }
}

/** @returns {Promise<import("./types.js").KnownPack|null>} */
async function pick() {
  try {
    return await post("/api/packs/pick");
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "no_dialog")) throw error;
  }
  const path = await promptDialog("packs.add", "packs.path", "", "packs.add_action");
  return path ? post("/api/packs", { path }) : null;
}
