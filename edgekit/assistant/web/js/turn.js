/**
 * A turn: the question goes to the host, the answer streams into an `Answer`.
 *
 * A turn belongs to its conversation, not to the view: it goes on while another conversation is
 * read, and the view finds it again by `liveTurn(id)`.
 */

import { ApiError, post, stream } from "./api.js";
import { Announcer, announce } from "./announcer.js";
import { Answer } from "./answer.js";
import { t } from "./i18n.js";
import { attempt } from "./notices.js";

/** @typedef {import("./types.js").Message} Message */
/**
 * What the view is told.
 * @typedef {object} Listener
 * @property {(turn: Turn) => void} begun the question and the answer have ids
 * @property {(turn: Turn) => void} ended with `turn.final`, `turn.error`, or neither
 * @property {(turn: Turn) => void} grown something on the page changed
 */

const TRIES = 5;
const PAUSE_MS = 500;

/** @type {Map<string, Turn>} */
const running = new Map();

/** @param {string|null} conversation */
export const liveTurn = (conversation) => (conversation ? running.get(conversation) : undefined);

/** One question and the answer to it. */
export class Turn {
  answer = new Answer();
  /** @type {Message|null} */ question = null;
  /** @type {Message|null} the answer while it streams */ draft = null;
  /** @type {Message|null} */ final = null;
  /** @type {{code: string, message: string}|null} */ error = null;
  /** @type {string|null} */ suggestion = null;
  /** @type {string|null} */ #id = null;
  #seen = 0;
  #stopWanted = false;
  #announcer = new Announcer();

  /**
   * @param {string} conversation
   * @param {string|null} parent of the answer when there is no new question
   * @param {Listener} listener
   */
  constructor(conversation, parent, listener) {
    this.conversation = conversation;
    this.parent = parent;
    this.listener = listener;
  }

  /**
   * Ask, and stay until the answer has ended.
   * @param {string} path
   * @param {object|undefined} body
   */
  async run(path, body) {
    running.set(this.conversation, this);
    await this.#read(path, body);
    for (let tries = 0; this.#id && !this.#over && tries < TRIES; tries++) {
      // the connection broke, the answer did not: read on from where it was
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      await this.#read(`/api/turns/${this.#id}/events?from=${this.#seen}`, undefined);
    }
    if (!this.#over) this.error = { code: "cut_off", message: "" };
    running.delete(this.conversation);
    this.#finish();
    this.listener.ended(this);
  }

  /**
   * Go on with a turn that this page did not start, from its first event.
   * @param {string} id
   */
  async follow(id) {
    this.#id = id;
    await this.run(`/api/turns/${id}/events?from=0`, undefined);
  }

  get #over() {
    return this.final !== null || this.error !== null;
  }

  /**
   * @param {string} path
   * @param {object|undefined} body
   */
  async #read(path, body) {
    try {
      await stream(path, body, (name, data) => this.#take(name, data));
    } catch (error) {
      if (!(error instanceof ApiError) || error.status === 0) return; // broken, not refused
      this.error = { code: error.code, message: error.message };
    }
  }

  /** Ask the host to stop; before the turn has an id, as soon as it has one. */
  async stop() {
    this.#stopWanted = true;
    if (this.#id) await attempt(() => post(`/api/turns/${this.#id}/stop`));
  }

  /**
   * @param {string} name
   * @param {any} data
   */
  #take(name, data) {
    const { answer } = this;
    this.#seen += 1;
    switch (name) {
      case "begin":
        this.#begin(data);
        break;
      case "queue":
        answer.queued(data.position ?? 0);
        break;
      case "passages":
        answer.found(Array.isArray(data) ? data : data.passages);
        break;
      case "nothing_found":
        answer.nothingFound();
        announce(t("sources.nothing"));
        break;
      case "compacted":
        answer.compacted(data);
        break;
      case "block":
        answer.block(data.index, data.html);
        this.#announcer.push(answer.blocks.textContent ?? "");
        break;
      case "thinking":
        answer.think(data.text);
        break;
      case "tool":
        answer.tool(data);
        break;
      case "tool_result":
        answer.toolResult(data.call_id, data.text, data.error);
        break;
      case "stats":
        answer.measured(data, {});
        break;
      case "suggestion":
        this.suggestion = data.code;
        break;
      case "done":
        this.final = data.message;
        break;
      case "error":
        this.error = { code: data.code, message: data.message };
        break;
    }
    this.listener.grown(this);
  }

  /** @param {{turn_id: string, user_message: Message|null, answer_id: string}} data */
  #begin(data) {
    this.#id = data.turn_id;
    this.question = data.user_message;
    this.draft = {
      id: data.answer_id,
      conversation_id: this.conversation,
      parent_id: data.user_message?.id ?? this.parent,
      role: "assistant",
      content: "",
      thinking: "",
      created: new Date().toISOString(),
      origin: {},
      stats: {},
      sources: [],
      tool_calls: [],
      state: "partial",
    };
    this.listener.begun(this);
    if (this.#stopWanted) this.stop();
  }

  #finish() {
    this.#announcer.finish(this.answer.blocks.textContent ?? "");
    this.answer.settle();
    if (this.final)
      announce(t(this.final.state === "stopped" ? "message.stopped" : "message.finished"));
    else if (this.error) this.answer.failed(this.error.code, this.error.message);
  }
}
