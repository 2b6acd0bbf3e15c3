/** Settings of answers: how tokens are sampled, and which key sends. */

import { h } from "../dom.js";
import { block, numberField, select } from "./form.js";

/** Build the section. */
export function answersSection() {
  return h(
    "div",
    {},
    block(
      "settings.sampling",
      "settings.sampling_text",
      numberField("temperature", { min: 0, max: 2, step: 0.05 }),
      numberField("top_p", { min: 0.05, max: 1, step: 0.05 }),
      numberField("top_k", { min: 0, max: 1000, step: 1 }),
      numberField("repetition_penalty", { min: 1, max: 2, step: 0.05 }),
      numberField("max_tokens", { min: 16, max: 32768, step: 1 }),
    ),
    block("settings.writing", null, select("send_key", ["enter", "ctrl-enter"])),
  );
}
