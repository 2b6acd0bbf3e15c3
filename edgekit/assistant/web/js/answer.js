/**
 * An answer on the page, written the same way whether it streams in or comes from the history.
 */

import { errorSentence } from "./api.js";
import { fill, h, say, setHtml } from "./dom.js";
import { has, number, t } from "./i18n.js";
import { icon } from "./icons.js";
import { enrich, outline } from "./rich-text.js";
import { sourceRow } from "./sources.js";
import { ToolCard } from "./tool-card.js";
import { targetName } from "./targets.js";

/** @typedef {import("./types.js").Message} Message */
/** @typedef {import("./types.js").Passage} Passage */
/** @typedef {import("./types.js").Stats} Stats */
/** @typedef {import("./types.js").Origin} Origin */

/** The parts of one answer and how events change them. */
export class Answer {
  /** @type {Passage[]} */
  #passages = [];
  /** @type {Map<string, ToolCard>} */
  #tools = new Map();
  #thinkingText = "";

  constructor() {
    this.mark = h("div", { class: "answer-mark" });
    this.note = h("div", { class: "answer-note" });
    this.summary = h("summary", { t: "message.thinking" });
    this.thoughts = h("div", { class: "thinking-text" });
    this.thinking = h("details", { class: "thinking", hidden: true }, this.summary, this.thoughts);
    this.tools = h("div", { class: "tools" });
    this.blocks = h("div", { class: "rich" });
    this.wait = h("p", { class: "waiting", t: "message.preparing" });
    this.end = h("div", { class: "answer-end" });
    this.sources = h("div");
    this.hint = h("div", { class: "answer-hint" });
    this.stats = h("p", { class: "stats" });
    this.foot = h("footer", { class: "message-foot" });
    this.element = h(
      "article",
      { class: "message answer", tLabel: "message.answer" },
      h("h2", { class: "visually-hidden", t: "message.answer" }),
      this.mark,
      this.note,
      this.thinking,
      this.tools,
      this.blocks,
      this.wait,
      this.end,
      this.sources,
      this.hint,
      this.foot,
    );
  }

  /** The answer's words without markup. */
  get text() {
    return this.blocks.innerText;
  }

  /**
   * @param {number} index
   * @param {string} html sanitised by the host
   */
  block(index, html) {
    this.wait.hidden = true;
    while (this.blocks.childElementCount <= index) this.blocks.append(h("div", { class: "block" }));
    const block = /** @type {HTMLElement} */ (this.blocks.children[index]);
    setHtml(block, html);
    enrich(block, this.#passages);
    outline(this.blocks);
  }

  /** @param {string} text more of the model's thinking */
  think(text) {
    this.#thinkingText += text;
    this.thinking.hidden = false;
    this.wait.hidden = true;
    this.thoughts.textContent = this.#thinkingText;
  }

  /** @param {import("./types.js").ToolCall} call */
  tool(call) {
    const card = new ToolCard(call);
    this.#tools.set(call.call_id, card);
    this.tools.append(card.element);
    this.wait.hidden = true;
  }

  /**
   * @param {string} id
   * @param {string} text
   * @param {boolean} error
   */
  toolResult(id, text, error) {
    this.#tools.get(id)?.result(text, error);
  }

  /** @param {Passage[]} passages */
  found(passages) {
    this.#passages = passages;
    fill(this.sources, passages.length ? sourceRow(passages) : null);
  }

  nothingFound() {
    this.note.append(
      h("p", { class: "note" }, icon("documents"), h("span", { t: "sources.nothing" })),
    );
  }

  /** @param {import("./types.js").Compaction} compaction */
  compacted(compaction) {
    this.note.append(
      h(
        "details",
        { class: "note" },
        h("summary", { t: ["message.compacted", { count: compaction.summarised }] }),
        h("p", {}, compaction.note),
      ),
    );
  }

  /** @param {number} position in the queue; 0: running */
  queued(position) {
    if (position > 0) say(this.wait, "message.queued", { count: position });
    else say(this.wait, "message.preparing");
  }

  /**
   * @param {Stats} stats
   * @param {Origin} origin
   */
  measured(stats, origin) {
    const parts = [];
    if (origin.target) parts.push(h("span", {}, targetName(origin.target)));
    if (stats.tokens_per_second) {
      parts.push(h("span", { t: ["stats.speed", { speed: stats.tokens_per_second }] }));
    }
    if (stats.time_to_first_token) {
      const seconds = () => number(stats.time_to_first_token ?? 0, { maximumFractionDigits: 2 });
      parts.push(h("span", { t: ["stats.first", { seconds }] }));
    }
    if (stats.completion_tokens) {
      parts.push(h("span", { t: ["stats.tokens", { count: stats.completion_tokens }] }));
    }
    fill(this.stats, ...parts);
  }

  /** @param {{name: string, host: string, model: string}} cloud */
  fromCloud(cloud) {
    this.element.classList.add("from-cloud");
    fill(
      this.mark,
      h(
        "p",
        { class: "cloud-mark" },
        icon("cloud"),
        h("span", {
          t: ["cloud.mark", { name: cloud.name, host: cloud.host, model: cloud.model }],
        }),
      ),
    );
  }

  /**
   * What may be better elsewhere, as a hint; `actions` are the buttons.
   * @param {string} code
   * @param {...HTMLElement} actions
   */
  suggest(code, ...actions) {
    if (!has(`suggestion.${code}`)) return;
    fill(
      this.hint,
      h("p", { class: "note" }, icon("info"), h("span", { t: `suggestion.${code}` }), ...actions),
    );
  }

  /**
   * @param {string} code
   * @param {string} message
   */
  failed(code, message) {
    this.wait.hidden = true;
    fill(
      this.end,
      h(
        "p",
        { class: "note error" },
        icon("warning"),
        h("span", { t: ["message.failed", { sentence: () => errorSentence(code, message) }] }),
      ),
    );
  }

  stopped() {
    this.wait.hidden = true;
    fill(this.end, h("p", { class: "note", t: "message.stopped" }));
  }

  /** The stream has ended: nothing waits, and thinking is folded. */
  settle() {
    this.wait.hidden = true;
    this.thinking.open = false;
    say(this.summary, "message.thought");
  }

  /**
   * Everything that the history knows of an answer.
   * @param {Message} message
   */
  show(message) {
    this.found(message.sources ?? []);
    if (message.html !== undefined) {
      this.blocks.replaceChildren();
      this.block(0, message.html);
    }
    if (message.thinking && message.thinking !== this.#thinkingText) {
      this.#thinkingText = "";
      this.think(message.thinking);
    }
    for (const call of message.tool_calls ?? []) {
      if (!this.#tools.has(call.call_id)) this.tool(call);
    }
    const { origin = {} } = message;
    fill(this.note);
    if (origin.compacted) this.compacted(origin.compacted);
    if (origin.nothing_found) this.nothingFound();
    if (origin.cloud) this.fromCloud(origin.cloud);
    this.measured(message.stats ?? {}, origin);
    this.settle();
    if (message.state === "stopped") this.stopped();
    else if (message.state === "partial")
      fill(this.end, h("p", { class: "note", t: "message.partial" }));
    else if (message.state === "failed") {
      this.failed(origin.error?.code ?? "unknown", origin.error?.message ?? t("error.unknown"));
    }
  }
}
