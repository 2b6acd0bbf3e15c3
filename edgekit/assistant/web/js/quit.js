/**
 * Ending the program from the page: in a browser's tab there is no window to close.
 */

import { post } from "./api.js";
import { confirmDialog } from "./dialogs.js";
import { byId, say } from "./dom.js";
import { attempt } from "./notices.js";

/** Ask, and end everything. */
export async function quit() {
  if (!(await confirmDialog("app.quit", "app.quit_text", "app.quit"))) return;
  const ended = await attempt(async () => {
    await post("/api/quit");
    return true;
  });
  if (ended) say(byId("gone"), "app.gone");
}
