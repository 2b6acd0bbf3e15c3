/**
 * The page's start: exchange the one-time token for a cookie, learn the state, draw, and listen.
 *
 * Everything after that happens because the person does something or the host says something over
 * `/api/events`.
 */

import { ApiError, get, post, sentenceOf } from "./api.js";
import { ConversationView } from "./conversation.js";
import { documentsView } from "./documents.js";
import { byId, fill, h } from "./dom.js";
import { bindMarkup, loadLocales, setLanguage } from "./i18n.js";
import { icon } from "./icons.js";
import { guardLinks } from "./links.js";
import { onAssistant } from "./palette.js";
import { refreshAll } from "./refresh.js";
import { go, onRoute, rename, route } from "./router.js";
import { settingsView } from "./settings.js";
import { applyTheme } from "./settings/appearance.js";
import { installShortcuts } from "./shortcuts.js";
import { sidebar, toggleSidebar } from "./sidebar.js";
import { store, update, watch } from "./store.js";
import { welcomeView } from "./welcome.js";

/** @type {ConversationView|null} */
let conversation = null;

/** Trade the token of the address for the session's cookie, and forget it. */
async function signIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("t");
  if (!token) return;
  rename("");
  await post("/api/session", { token });
}

/** Draw the view of the address. */
function show() {
  const { name, id, part } = route();
  if (document.body.classList.contains("sidebar-open")) toggleSidebar(false);
  conversation?.close();
  conversation = null;
  update({ conversation: null });
  document.title = "edgekit";
  if (name === "chat") {
    conversation = new ConversationView();
    fill(byId("view"), conversation.element);
    conversation.open(id, part);
    return;
  }
  const views = {
    documents: documentsView,
    welcome: welcomeView,
    settings: () => settingsView(id ?? ""),
  };
  fill(byId("view"), views[name]());
  byId("main").focus();
}

/** Follow the host's events; the browser connects again by itself after a gap. */
function listen() {
  const events = new EventSource("/api/events");
  /** @param {string} name @param {(data: any) => void} take */
  const on = (name, take) =>
    events.addEventListener(name, (event) => take(JSON.parse(event.data || "null")));
  on("state", (app) => update({ app }));
  on("demo", (demo) => update({ app: { ...store.app, demo } }));
  on("documents", (documents) => update({ documents }));
  on("raise", () => window.focus());
  events.onopen = () => byId("gone").toggleAttribute("hidden", true);
  events.onerror = () => byId("gone").toggleAttribute("hidden", false);
}

/** Keep language and theme as the settings say. */
function followSettings() {
  let language = "";
  watch(
    ["app"],
    () => {
      applyTheme();
      if (store.app.settings.language === language) return;
      language = store.app.settings.language;
      setLanguage(language);
    },
    null,
  );
}

/**
 * Nothing can be shown: say why.
 * @param {unknown} error
 */
function locked(error) {
  const known = error instanceof ApiError && error.status === 401;
  fill(
    byId("main"),
    h(
      "div",
      { class: "locked" },
      icon("lock"),
      h("h1", { t: "locked.title" }),
      known ? h("p", { t: "locked.text" }) : h("p", {}, sentenceOf(error)),
    ),
  );
}

async function start() {
  await loadLocales();
  setLanguage("auto");
  bindMarkup();
  try {
    await signIn();
    update({ app: await get("/api/state") });
  } catch (error) {
    return locked(error);
  }
  followSettings();
  await refreshAll();
  fill(byId("sidebar"), sidebar());
  byId("open-sidebar").append(icon("menu"));
  byId("open-sidebar").addEventListener("click", () => toggleSidebar(true));
  byId("shade").addEventListener("click", () => toggleSidebar(false));
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  guardLinks();
  installShortcuts({
    stop: () => conversation?.composer.stop() ?? false,
    write: () => (conversation ? conversation.composer.focus() : go("")),
  });
  onAssistant((id) => conversation?.composer.assistant.choose(id));
  if (store.app.first_start && store.app.engine.state === "none") rename("welcome");
  onRoute(show);
  show();
  listen();
  document.body.classList.add("started");
}

start();
