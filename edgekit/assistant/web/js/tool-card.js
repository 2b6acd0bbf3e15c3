/**
 * A tool call in an answer: its name and arguments, the question whether it may run, its result.
 */

import { post } from "./api.js";
import { announce } from "./announcer.js";
import { button, fill, h } from "./dom.js";
import { has, t } from "./i18n.js";
import { icon } from "./icons.js";
import { attempt } from "./notices.js";

/** @typedef {import("./types.js").ToolCall} ToolCall */

/** One card; it changes as the call goes on. */
export class ToolCard {
  /** @param {ToolCall} call */
  constructor(call) {
    this.call = call;
    this.state = h("span", { class: "tool-state" });
    this.foot = h("div", { class: "tool-foot" });
    this.element = h(
      "div",
      { class: "tool", role: "group", tLabel: ["tool.label", { name: call.name }] },
      h(
        "div",
        { class: "tool-head" },
        icon("tool"),
        h("strong", {}, ...toolName(call)),
        call.server
          ? h("span", { class: "tool-server", t: ["tool.from", { server: call.server }] })
          : null,
        this.state,
      ),
      h(
        "pre",
        { class: "tool-arguments", tabindex: 0, tLabel: "tool.arguments" },
        pretty(call.arguments),
      ),
      this.foot,
    );
    if (call.text !== undefined) this.result(call.text, call.error ?? false);
    else if (call.consent) this.#ask();
    else fill(this.state, h("span", { t: "tool.running" }));
  }

  #ask() {
    this.element.classList.add("asking");
    announce(t("tool.asks", { name: this.call.name, server: this.call.server }));
    fill(
      this.foot,
      h("p", { t: ["tool.asks", { name: this.call.name, server: this.call.server }] }),
      h(
        "div",
        { class: "button-row" },
        button("tool.once", () => this.#answer("once"), "primary"),
        button("tool.always", () => this.#answer("always")),
        button("tool.deny", () => this.#answer("deny")),
      ),
    );
  }

  /** @param {"once"|"always"|"deny"} allow */
  async #answer(allow) {
    const id = encodeURIComponent(this.call.call_id);
    const sent = await attempt(async () => {
      await post(`/api/consents/${id}`, { allow });
      return true;
    });
    if (!sent) return;
    this.element.classList.remove("asking");
    fill(this.foot);
    fill(this.state, h("span", { t: allow === "deny" ? "tool.denied" : "tool.running" }));
  }

  /**
   * @param {string} text
   * @param {boolean} error
   */
  result(text, error) {
    this.element.classList.remove("asking");
    this.element.classList.toggle("failed", error);
    fill(this.state, h("span", { t: error ? "tool.failed" : "tool.done" }));
    fill(
      this.foot,
      h(
        "details",
        { class: "tool-result" },
        h("summary", { t: "tool.result" }),
        h("pre", { tabindex: 0 }, text),
      ),
    );
  }
}

/** @param {ToolCall} call */
function toolName(call) {
  if (!call.server && has(`tool.builtin.${call.name}`))
    return [h("span", { t: `tool.builtin.${call.name}` })];
  return [call.name];
}

/** @param {unknown} value */
function pretty(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
