/** Settings of the local endpoint: how other programs on this computer use the same model. */

import { button, fill, h } from "../dom.js";
import { copyText } from "../rich-text.js";
import { store, watch } from "../store.js";
import { policyNotice } from "./cloud.js";
import { block, toggle } from "./form.js";

/** Build the section. */
export function endpointSection() {
  if (store.app.policy.endpoint === "forbidden") {
    return h("div", {}, block("endpoint.title", "endpoint.text", policyNotice("policy.endpoint")));
  }
  const how = h("div");
  const element = h(
    "div",
    {},
    block("endpoint.title", "endpoint.text", toggle("endpoint_enabled")),
    how,
  );
  watch(["app"], () => fill(how, usage()), element);
  return element;
}

function usage() {
  const { endpoint } = store.app.engine;
  if (!store.app.settings.endpoint_enabled) return null;
  if (!endpoint) return h("p", { class: "hint", t: "endpoint.waiting" });
  const base = endpoint.url;
  const curl = [
    `curl ${base}/chat/completions \\`,
    `  -H "Authorization: Bearer $(cat '${endpoint.token_file}')" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '{"model": "default", "messages": [{"role": "user", "content": "2 + 2"}]}'`,
  ].join("\n");
  const python = [
    "from pathlib import Path",
    "from openai import OpenAI",
    "",
    `token = Path(${JSON.stringify(endpoint.token_file)}).read_text().strip()`,
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=token)`,
  ].join("\n");
  return block(
    "endpoint.how",
    "endpoint.how_text",
    h(
      "dl",
      { class: "facts" },
      h("dt", { t: "endpoint.address" }),
      h("dd", { class: "verbatim" }, base),
      h("dt", { t: "endpoint.token" }),
      h("dd", { class: "verbatim" }, endpoint.token_file),
    ),
    snippet("curl", curl),
    snippet("Python", python),
  );
}

/**
 * @param {string} name
 * @param {string} text
 */
function snippet(name, text) {
  return h(
    "figure",
    { class: "code" },
    h(
      "figcaption",
      {},
      h("span", {}, name),
      button("message.copy", () => copyText(text), "quiet"),
    ),
    h("pre", { tabindex: 0 }, text),
  );
}
