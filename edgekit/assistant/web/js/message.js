/**
 * One message of the shown path: a question or an answer, with its actions and its branches.
 */

import { Answer } from "./answer.js";
import { button, fill, h } from "./dom.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { copyText } from "./rich-text.js";
import { store } from "./store.js";
import { targetName } from "./targets.js";

/** @typedef {import("./types.js").Message} Message */
/**
 * What a message can ask of its conversation.
 * @typedef {object} Actions
 * @property {(message: Message, text: string) => void} edit ask again with other words, as a branch
 * @property {(message: Message, target?: string) => void} regenerate
 * @property {(message: Message, step: number) => void} branch show the branch `step` places on
 * @property {(message: Message) => {at: number, of: number}} place among its branches
 * @property {(message: Message) => void} toCloud ask the cloud teacher the same
 */

/** A message and its element. */
export class MessageView {
  /**
   * @param {Message} message
   * @param {Actions} actions
   * @param {Answer} [live] the answer that is streaming in
   */
  constructor(message, actions, live) {
    this.message = message;
    this.actions = actions;
    this.answer = message.role === "assistant" ? (live ?? new Answer()) : null;
    this.foot = this.answer?.foot ?? h("footer", { class: "message-foot" });
    this.body = h("div", { class: "question-text" });
    this.element =
      this.answer?.element ??
      h(
        "article",
        { class: "message question", tLabel: "message.question" },
        h("h2", { class: "visually-hidden", t: "message.question" }),
        this.body,
        this.foot,
      );
    this.element.dataset.id = message.id;
    this.live = live !== undefined;
    if (!live) this.show(message);
  }

  /** @param {Message} message a newer state of the same message */
  show(message) {
    this.message = message;
    this.live = false;
    if (!this.answer) fill(this.body, message.content);
    else {
      this.answer.show(message);
      const suggestion = message.origin?.suggestion;
      if (suggestion && !message.origin.cloud) this.suggest(suggestion);
    }
    this.refresh();
  }

  /** The stream broke off; what has come stays. */
  ended() {
    this.live = false;
    this.refresh();
  }

  /** @param {string} code */
  suggest(code) {
    const { cloud, policy } = store.app;
    const able = cloud.configured && policy.cloud === "allowed";
    const ask = able
      ? [button("cloud.ask", () => this.actions.toCloud(this.message), "quiet")]
      : [];
    this.answer?.suggest(code, ...ask);
  }

  /** The foot again: the number of branches may have changed. */
  refresh() {
    const { message } = this;
    if (this.live) return fill(this.foot);
    const branches = this.#branches();
    const buttons = message.role === "user" ? this.#questionActions() : this.#answerActions();
    fill(
      this.foot,
      branches,
      h("div", { class: "message-actions" }, ...buttons),
      this.answer?.stats,
    );
  }

  #branches() {
    const { at, of } = this.actions.place(this.message);
    if (of < 2) return null;
    /** @param {number} step @param {"left"|"right"} name */
    const arrow = (step, name) =>
      h(
        "button",
        {
          type: "button",
          class: "icon-button small",
          tLabel: step < 0 ? "branch.previous" : "branch.next",
          disabled: step < 0 ? at === 1 : at === of,
          onclick: () => this.actions.branch(this.message, step),
        },
        icon(name),
      );
    return h(
      "div",
      { class: "branches", role: "group", tLabel: "branch.label" },
      arrow(-1, "left"),
      h("span", { t: ["branch.place", { at, of }] }),
      arrow(1, "right"),
    );
  }

  #questionActions() {
    return [
      small("edit", "message.edit", () => this.#edit()),
      small("copy", "message.copy", () => copyText(this.message.content)),
    ];
  }

  #answerActions() {
    const { message } = this;
    const copy = small("copy", "message.copy", () => copyText(message.content));
    if (message.origin?.cloud) return [copy];
    return [
      copy,
      small("again", "message.again", () => this.actions.regenerate(message)),
      small("device", "message.elsewhere", (event) => this.#elsewhere(event)),
    ];
  }

  /** @param {MouseEvent} event */
  #elsewhere(event) {
    const here = store.app.engine.reasons.filter((r) => r.code === "chosen" || r.code === "later");
    const others = here.map((r) => r.target).filter((name) => name !== this.message.origin?.target);
    const items = others.map((target) => ({
      label: targetName(target),
      icon: /** @type {const} */ ("device"),
      run: () => this.actions.regenerate(this.message, target),
    }));
    const none = { words: "device.no_other", disabled: true, run: () => {} };
    openMenu(
      /** @type {HTMLElement} */ (event.currentTarget),
      "message.elsewhere",
      items.length ? items : [none],
    );
  }

  #edit() {
    const area = h("textarea", { class: "field edit-text", rows: 3, tLabel: "message.edit_label" });
    area.value = this.message.content;
    const end = () => {
      fill(this.body, this.message.content);
      this.foot.hidden = false;
      this.element.classList.remove("editing");
      /** @type {HTMLElement|null} */ (this.foot.querySelector(".message-actions button"))?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      end();
      if (text && text !== this.message.content) this.actions.edit(this.message, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    fill(
      this.body,
      area,
      h("p", { class: "hint", t: "message.edit_hint" }),
      h(
        "div",
        { class: "button-row" },
        button("message.send_branch", send, "primary"),
        button("dialog.cancel", end),
      ),
    );
    this.foot.hidden = true;
    this.element.classList.add("editing");
    area.focus();
  }
}

/**
 * @param {import("./icons.js").IconName} name
 * @param {string} label
 * @param {(event: MouseEvent) => void} onclick
 */
function small(name, label, onclick) {
  return h(
    "button",
    { type: "button", class: "icon-button small", tLabel: label, tTitle: label, onclick },
    icon(name),
  );
}
