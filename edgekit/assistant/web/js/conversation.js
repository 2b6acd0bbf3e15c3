/**
 * The conversation view: the shown path of messages, the answer that streams in, the composer below.
 */

import { ApiError, call, get, post } from "./api.js";
import { Composer } from "./composer.js";
import { previewForCloud } from "./cloud-preview.js";
import { emptyPage } from "./empty.js";
import { fill, h, plain, say } from "./dom.js";
import { icon } from "./icons.js";
import { MessageView } from "./message.js";
import { attempt, failed } from "./notices.js";
import { refreshConversations } from "./refresh.js";
import { go, rename } from "./router.js";
import { ready, store, update, watch } from "./store.js";
import { choicesTo, shownPath, siblings } from "./tree.js";
import { liveTurn, Turn } from "./turn.js";

/** @typedef {import("./types.js").Message} Message */
/** @typedef {{text?: string, parent_id: string|null, regenerate?: string, target?: string}} Ask */

const NEAR_END = 120;

/** The view of one conversation, or of a new one. */
export class ConversationView {
  /** @type {string|null} */ id = null;
  /** @type {Message[]} */ messages = [];
  /** @type {Map<string|null, string>} */ choices = new Map();
  /** @type {Map<string, MessageView>} */ #views = new Map();
  /** @type {string|null} */ assistant = null;
  #follow = true;
  #starting = false;
  #closed = false;

  constructor() {
    this.list = h("div", { class: "messages" });
    this.scroll = h(
      "section",
      {
        class: "conversation",
        tLabel: "chat.conversation",
        tabindex: 0,
        onscroll: () => this.#scrolled(),
      },
      this.list,
    );
    this.latest = h(
      "button",
      {
        type: "button",
        class: "latest",
        hidden: true,
        tLabel: "chat.latest",
        onclick: () => this.#toEnd(true),
      },
      icon("down"),
    );
    this.composer = new Composer(this);
    this.heading = h("h1", { class: "view-title" });
    this.element = h(
      "div",
      { class: "chat" },
      h("header", { class: "view-head" }, this.heading),
      this.scroll,
      h("div", { class: "chat-foot" }, this.latest, this.composer.element),
    );
    watch(["conversations"], () => this.#title(), this.element);
  }

  /**
   * Show a conversation of the history, or an empty one.
   * @param {string|null} id
   * @param {string|null} message to scroll to
   */
  async open(id, message = null) {
    this.id = id;
    update({ conversation: id });
    this.#title();
    if (id) {
      const found = await attempt(() => get(`/api/conversations/${id}`));
      if (this.#closed) return;
      if (!found) return go("");
      this.messages = found.messages;
      this.assistant = found.conversation.assistant_id;
      if (message) this.choices = choicesTo(this.messages, message);
      const turn = liveTurn(id);
      if (turn) turn.listener = this.#listener();
      else this.#adopt(found.running ?? []);
    }
    this.composer.refresh();
    this.render();
    if (message) this.#showMessage(message);
    else if (this.messages.length) this.#toEnd(true);
    if (!message) this.composer.focus();
  }

  /** The view has been left; a turn that runs goes on without it. */
  close() {
    this.#closed = true;
  }

  /** The last message of the shown path. */
  get leaf() {
    return shownPath(this.messages, this.choices).at(-1) ?? null;
  }

  /** Whether an answer is streaming here. */
  get busy() {
    return liveTurn(this.id) !== undefined;
  }

  /**
   * Ask something new at the end of the shown path.
   * @param {string} text
   */
  async send(text) {
    return this.#ask({ text, parent_id: this.leaf?.id ?? null });
  }

  /** Stop the answer that streams in. */
  stop() {
    liveTurn(this.id)?.stop();
  }

  /**
   * Show what would go to the cloud teacher, and send it if the person says so.
   * @param {string} text
   * @param {string|null} parent
   */
  async sendToCloud(text, parent = this.leaf?.id ?? null) {
    const isNew = this.id === null;
    const id = await this.#conversationId();
    if (!id) return;
    const preview = await previewForCloud(
      { conversation_id: id, parent_id: parent, text, assistant_id: this.assistant ?? undefined },
      this.composer.documents,
    );
    if (!preview) {
      if (isNew) await this.#forget(id); // it was made for the preview alone
      return;
    }
    const turn = this.#turn(id, parent);
    turn.run("/api/cloud/send", { preview_id: preview, conversation_id: id });
    this.composer.refresh();
  }

  /** @param {string} id of a conversation in which nothing was said */
  async #forget(id) {
    this.id = null;
    rename("");
    update({ conversation: null });
    await attempt(() => call("DELETE", `/api/conversations/${id}`));
    await refreshConversations();
  }

  /** @param {Ask} ask */
  async #ask(ask) {
    if (!ready() || this.busy || this.#starting) return;
    this.#starting = true;
    const id = await this.#conversationId();
    this.#starting = false;
    if (!id) return;
    const { documents, tools } = this.composer;
    const turn = this.#turn(id, ask.parent_id);
    turn.run(`/api/conversations/${id}/turns`, {
      ...ask,
      assistant_id: this.assistant ?? undefined,
      documents,
      tools,
    });
    this.composer.refresh();
  }

  /** The id, after making a conversation where there is none yet. */
  async #conversationId() {
    if (this.id) return this.id;
    const made = await attempt(() => post("/api/conversations", { assistant_id: this.assistant }));
    if (!made) return null;
    this.id = made.id;
    rename(`c/${made.id}`);
    update({ conversation: made.id });
    return this.id;
  }

  /**
   * @param {string} id
   * @param {string|null} parent
   */
  #turn(id, parent) {
    return new Turn(id, parent, this.#listener());
  }

  /** @returns {import("./turn.js").Listener} */
  #listener() {
    return {
      begun: (turn) => this.#begun(turn),
      grown: () => this.#grown(),
      ended: (turn) => this.#ended(turn),
    };
  }

  /** @param {Turn} turn */
  #begun(turn) {
    refreshConversations();
    if (turn.draft) this.#views.delete(turn.draft.id); // a reload has drawn what was stored of it
    for (const message of [turn.question, turn.draft]) {
      if (!message) continue;
      this.messages = [...this.messages.filter((m) => m.id !== message.id), message];
      this.choices.set(message.parent_id, message.id);
    }
    this.composer.accepted(turn.question?.content ?? null);
    this.#follow = true;
    this.render();
    this.#toEnd(true);
  }

  #grown() {
    if (this.#follow) this.#toEnd(false);
  }

  /** @param {Turn} turn */
  #ended(turn) {
    refreshConversations();
    const { final, draft, error } = turn;
    const speed = final?.origin?.cloud ? null : final?.stats?.tokens_per_second;
    if (speed) update({ speed });
    if (this.#closed) return;
    if (final) {
      this.messages = this.messages.map((m) => (m.id === draft?.id ? final : m));
      const view = this.#views.get(final.id);
      view?.show(final);
      if (turn.suggestion && !final.origin?.cloud) view?.suggest(turn.suggestion);
    } else if (error && !draft) {
      // refused before it began: the words are still in the composer
      failed(new ApiError(error.code, error.message, 0));
    } else if (draft) {
      this.#views.get(draft.id)?.ended();
    }
    this.composer.refresh();
    if (this.#follow) this.#toEnd(false);
  }

  /** Draw the shown path; messages that are on the page already are kept. */
  render() {
    const path = shownPath(this.messages, this.choices).filter(
      (m) => m.role === "user" || m.role === "assistant",
    );
    const turn = liveTurn(this.id);
    const actions = this.#actions();
    const elements = path.map((message) => {
      let view = this.#views.get(message.id);
      if (!view) {
        const live = turn?.draft?.id === message.id ? turn.answer : undefined;
        view = new MessageView(message, actions, live);
        this.#views.set(message.id, view);
      } else if (view.message !== message) view.show(message);
      view.refresh();
      return view.element;
    });
    fill(this.list, ...(path.length ? elements : [emptyPage(this.composer)]));
    this.element.classList.toggle("empty", !path.length);
    this.#title();
  }

  /** @returns {import("./message.js").Actions} */
  #actions() {
    return {
      edit: (message, text) => this.#ask({ text, parent_id: message.parent_id }),
      regenerate: (message, target) =>
        this.#ask({ parent_id: message.parent_id, regenerate: message.id, target }),
      place: (message) => {
        const all = siblings(this.messages, message);
        return { at: all.findIndex((m) => m.id === message.id) + 1, of: all.length };
      },
      branch: (message, step) => {
        const all = siblings(this.messages, message);
        const next = all[all.findIndex((m) => m.id === message.id) + step];
        if (!next) return;
        this.choices.set(next.parent_id, next.id);
        this.render();
        const view = this.#views.get(next.id);
        const arrows = view?.foot.querySelectorAll(".branches button:not(:disabled)") ?? [];
        /** @type {HTMLElement|undefined} */ (arrows[step > 0 ? arrows.length - 1 : 0])?.focus();
      },
      toCloud: (message) => {
        const question = this.messages.find((m) => m.id === message.parent_id);
        if (question) this.sendToCloud(question.content, question.parent_id);
      },
    };
  }

  /**
   * Turns that run without this page having started them, as after a reload.
   * @param {import("./types.js").RunningTurn[]} turns
   */
  #adopt(turns) {
    const [first] = turns;
    if (!first || !this.id) return;
    const parent = this.messages.find((m) => m.id === first.answer_id)?.parent_id ?? null;
    this.#turn(this.id, parent).follow(first.turn_id);
  }

  #title() {
    const known = store.conversations.find((c) => c.id === this.id);
    if (known?.title) plain(this.heading, known.title);
    else say(this.heading, "chat.new");
    document.title = known?.title ? `${known.title} – edgekit` : "edgekit";
  }

  /** @param {string} id */
  #showMessage(id) {
    const element = this.#views.get(id)?.element;
    if (!element) return;
    element.scrollIntoView({ block: "center" });
    element.tabIndex = -1;
    element.focus();
    element.classList.add("found");
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    this.#follow = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.latest.hidden = this.#follow;
  }

  /** @param {boolean} always */
  #toEnd(always) {
    if (always) this.#follow = true;
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}
