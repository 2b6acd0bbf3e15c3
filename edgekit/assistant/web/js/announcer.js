/**
 * Reads an answer out as it grows: whole sentences go to a polite log, tokens never do.
 */

import { byId } from "./dom.js";

const SENTENCE_END = /[.!?…](?=\s)|[。！？]|\n/g;
const KEPT = 20;

/** One answer's place in the log. */
export class Announcer {
  #said = 0;

  /**
   * The answer's text so far; sentences that are complete now are said.
   * @param {string} text
   */
  push(text) {
    let end = this.#said;
    for (const match of text.matchAll(SENTENCE_END)) {
      end = Math.max(end, match.index + match[0].length);
    }
    this.#say(text.slice(this.#said, end));
    this.#said = Math.max(this.#said, end);
  }

  /**
   * The whole text: what is left is said.
   * @param {string} text
   */
  finish(text) {
    this.#say(text.slice(this.#said));
    this.#said = text.length;
  }

  /** @param {string} sentence */
  #say(sentence) {
    if (sentence.trim()) announce(sentence.trim());
  }
}

/**
 * Say something once.
 * @param {string} text
 */
export function announce(text) {
  const log = byId("spoken");
  const line = document.createElement("p");
  line.textContent = text;
  log.append(line);
  while (log.childElementCount > KEPT) log.firstElementChild?.remove();
}
