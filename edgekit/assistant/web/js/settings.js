/**
 * The settings: a list of sections, one of which is open.
 */

import { h } from "./dom.js";
import { icon } from "./icons.js";
import { answersSection } from "./settings/answers.js";
import { appearanceSection } from "./settings/appearance.js";
import { assistantsSection, promptsSection } from "./settings/assistants.js";
import { cloudSection } from "./settings/cloud.js";
import { dataSection } from "./settings/data.js";
import { endpointSection } from "./settings/endpoint.js";
import { modelSection } from "./settings/model.js";
import { toolsSection } from "./settings/tools.js";

/** @typedef {{icon: import("./icons.js").IconName, words: string, build: () => HTMLElement}} Section */

/** @type {Record<string, Section>} */
const SECTIONS = {
  model: { icon: "device", words: "settings.model", build: modelSection },
  answers: { icon: "edit", words: "settings.answers", build: answersSection },
  appearance: { icon: "settings", words: "settings.appearance", build: appearanceSection },
  assistants: { icon: "person", words: "assistants.title", build: assistantsSection },
  prompts: { icon: "book", words: "prompts.title", build: promptsSection },
  cloud: { icon: "cloud", words: "cloud.title", build: cloudSection },
  tools: { icon: "tool", words: "settings.tools", build: toolsSection },
  endpoint: { icon: "key", words: "endpoint.title", build: endpointSection },
  data: { icon: "lock", words: "data.title", build: dataSection },
};

/**
 * Build the view.
 * @param {string} wanted a key of SECTIONS
 */
export function settingsView(wanted) {
  const open = wanted in SECTIONS ? wanted : "model";
  return h(
    "div",
    { class: "page settings" },
    h(
      "div",
      { class: "settings-inner" },
      h("h1", { class: "page-title", t: "settings.title" }),
      h(
        "nav",
        { class: "settings-nav", tLabel: "settings.sections" },
        ...Object.entries(SECTIONS).map(([key, section]) =>
          h(
            "a",
            { href: `#/settings/${key}`, "aria-current": key === open ? "page" : undefined },
            icon(section.icon),
            h("span", { t: section.words }),
          ),
        ),
      ),
      h("div", { class: "settings-content" }, SECTIONS[open].build()),
    ),
  );
}
