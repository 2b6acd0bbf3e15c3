/**
 * Links in answers: the whole address is shown first, then the system's browser opens it.
 */

import { post } from "./api.js";
import { confirmDialog } from "./dialogs.js";
import { attempt } from "./notices.js";

/** Take every click on a link inside model output; the page itself never leaves. */
export function guardLinks() {
  for (const type of ["click", "auxclick"]) {
    document.addEventListener(type, (event) => {
      const link = event.target instanceof Element ? event.target.closest(".rich a") : null;
      if (!link) return;
      event.preventDefault();
      const url = link.getAttribute("href") ?? "";
      if (event.type === "click" && /^(https?:|mailto:)/i.test(url)) confirmLink(url);
    });
  }
}

/** @param {string} url */
async function confirmLink(url) {
  const sure = await confirmDialog("link.title", "link.text", "link.open", { detail: url });
  if (sure) await attempt(() => post("/api/open-link", { url }));
}
