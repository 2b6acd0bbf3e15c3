/**
 * Where a question is written: grows with the text, knows who answers and with what, sends or stops.
 */

import { assistantButton } from "./assistants.js";
import { deviceLine } from "./device-line.js";
import { fill, h, say } from "./dom.js";
import { bind } from "./i18n.js";
import { icon } from "./icons.js";
import { guardPaste } from "./paste-guard.js";
import { promptButton } from "./prompts.js";
import { ready, store, watch } from "./store.js";
import { troubleBanner } from "./trouble.js";

/** @typedef {import("./conversation.js").ConversationView} ConversationView */

const MAX_HEIGHT = 0.4; // of the window

/** The composer of a conversation view. */
export class Composer {
  documents = (store.documents?.sources.length ?? 0) > 0;
  tools = false;
  /** A message that waits for the model to be loaded. */
  #held = false;

  /** @param {ConversationView} view */
  constructor(view) {
    this.view = view;
    this.text = h("textarea", {
      class: "composer-text",
      rows: 1,
      tLabel: "composer.label",
      tPlaceholder: "composer.placeholder",
      oninput: () => this.#typed(),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
      onpaste: (/** @type {ClipboardEvent} */ event) => guardPaste(event, this),
    });
    this.status = h("p", { class: "composer-status", role: "status" });
    this.assistant = assistantButton(view);
    this.cloud = this.#iconButton("cloud", "composer.cloud", () => this.#toCloud());
    this.send = h("button", { type: "submit", class: "send" });
    this.hint = h("span", { class: "key-hint" });
    this.element = h(
      "form",
      {
        class: "composer",
        tLabel: "composer.form",
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          this.#submit();
        },
      },
      troubleBanner(),
      h(
        "div",
        { class: "composer-box" },
        this.text,
        h(
          "div",
          { class: "composer-row" },
          this.assistant,
          this.#toggle("documents", "documents", "composer.documents"),
          this.#toggle("tools", "tool", "composer.tools"),
          promptButton((words) => this.insert(words)),
          h("span", { class: "spring" }),
          this.cloud,
          this.send,
        ),
      ),
      this.status,
      h("div", { class: "composer-foot" }, deviceLine(), this.hint),
    );
    watch(["app"], () => this.refresh(), this.element);
  }

  /** Draw what depends on the state. */
  refresh() {
    const { app } = store;
    const { busy } = this.view;
    const possible = ready() || app.engine.state === "loading";
    if (!possible) this.#held = false; // it cannot be sent any more: the words stay where they are
    const stops = busy || this.#held;
    fill(this.send, icon(stops ? "stop" : "send"));
    bind(this.send, "label", stops ? "chat.stop" : "chat.send");
    bind(this.send, "title", stops ? "chat.stop" : "chat.send");
    this.send.classList.toggle("stops", stops);
    this.send.disabled = !stops && (!this.text.value.trim() || !possible);
    this.cloud.hidden = !app.cloud.configured || app.policy.cloud === "forbidden";
    this.cloud.disabled = busy || !this.text.value.trim();
    say(this.hint, app.settings.send_key === "enter" ? "composer.enter" : "composer.ctrl_enter");
    this.status.hidden = !this.#held;
    if (this.#held) say(this.status, "composer.held");
    this.assistant.refresh();
    if (this.#held && ready()) this.#submitNow();
  }

  focus() {
    this.text.focus();
  }

  /** Stop what runs, or take back what waits; false when there is nothing to stop. */
  stop() {
    if (this.#held) {
      this.#held = false;
      this.refresh();
    } else if (this.view.busy) this.view.stop();
    else return false;
    return true;
  }

  /**
   * The host has taken the question: the words need not stay.
   * @param {string|null} text
   */
  accepted(text) {
    if (text !== null && this.text.value.trim() === text.trim()) this.text.value = "";
    this.#typed();
  }

  /**
   * Put words at the cursor.
   * @param {string} words
   */
  insert(words) {
    const { selectionStart: start, selectionEnd: end } = this.text;
    this.text.setRangeText(words, start, end, "end");
    this.#typed();
    this.focus();
  }

  #typed() {
    const { style } = this.text;
    style.height = "auto";
    style.height = `${Math.min(this.text.scrollHeight, innerHeight * MAX_HEIGHT)}px`;
    this.refresh();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Enter" || event.isComposing || event.shiftKey) return; // an input method may be open
    const ctrl = event.ctrlKey || event.metaKey;
    if (store.app.settings.send_key === "enter" || ctrl) {
      event.preventDefault();
      if (!this.view.busy) this.#submit();
    }
  }

  #submit() {
    if (this.stop()) return;
    if (!this.text.value.trim()) return;
    if (store.app.engine.state === "loading") {
      this.#held = true;
      this.refresh();
    } else this.#submitNow();
  }

  #submitNow() {
    this.#held = false;
    if (ready()) this.view.send(this.text.value.trim());
  }

  async #toCloud() {
    const text = this.text.value.trim();
    if (text) await this.view.sendToCloud(text);
  }

  /**
   * @param {"documents"|"tools"} what
   * @param {import("./icons.js").IconName} name
   * @param {string} label
   */
  #toggle(what, name, label) {
    const button = h(
      "button",
      {
        type: "button",
        class: "chip-button",
        "aria-pressed": String(this[what]),
        tTitle: `${label}_hint`,
        onclick: () => {
          this[what] = !this[what];
          button.setAttribute("aria-pressed", String(this[what]));
        },
      },
      icon(name),
      h("span", { class: "chip-words", t: label }),
    );
    return button;
  }

  /**
   * @param {import("./icons.js").IconName} name
   * @param {string} label
   * @param {() => void} onclick
   */
  #iconButton(name, label, onclick) {
    return h(
      "button",
      { type: "button", class: "icon-button", tLabel: label, tTitle: label, onclick },
      icon(name),
    );
  }
}
