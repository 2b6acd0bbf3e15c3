/** Settings of tools: MCP servers, whose whole command is shown before it runs. */

import { call, get, post } from "../api.js";
import { actions, confirmDialog, openDialog } from "../dialogs.js";
import { button, fill, h } from "../dom.js";
import { language } from "../i18n.js";
import { attempt } from "../notices.js";
import { store } from "../store.js";
import { editDialog } from "./assistants.js";
import { policyNotice } from "./cloud.js";
import { block, labelled } from "./form.js";

/** @typedef {import("../types.js").McpServer} McpServer */

/** Build the section. */
export function toolsSection() {
  const element = h(
    "div",
    {},
    block("tools.builtin", null, builtins()),
    block("mcp.title", "mcp.text"),
  );
  const { mcp } = store.app.policy;
  if (mcp !== "allowed") element.append(policyNotice(`policy.mcp.${mcp}`));
  if (mcp === "forbidden") return element;
  const list = h("div");
  const refresh = async () => {
    const servers = /** @type {McpServer[]|null} */ (await attempt(() => get("/api/mcp")));
    if (!servers) return;
    fill(
      list,
      servers.length
        ? h("ul", { class: "cards" }, ...servers.map((s) => h("li", {}, card(s, refresh))))
        : h("p", { class: "nothing", t: "mcp.none" }),
    );
  };
  element.append(
    list,
    button("mcp.add", () => addServer(refresh)),
  );
  refresh();
  return element;
}

function builtins() {
  return h(
    "ul",
    { class: "plain-list" },
    ...["calculator", "clock", "search_documents"].map((name) =>
      h(
        "li",
        {},
        h("strong", { t: `tool.builtin.${name}` }),
        " ",
        h("span", { class: "hint", t: `tool.builtin.${name}_text` }),
      ),
    ),
  );
}

/**
 * The command as it is started, its program found: one argument a line, nothing interpreted.
 * @param {McpServer} server
 */
const commandText = (server) =>
  (server.resolved.length ? server.resolved : server.command).join("\n");

/**
 * @param {McpServer} server
 * @param {() => void} refresh
 */
function card(server, refresh) {
  return h(
    "article",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      h("h3", {}, server.name),
      h("span", {
        class: `pill ${server.running ? "ready" : ""}`,
        t: server.running ? "mcp.running" : "mcp.stopped",
      }),
    ),
    h("pre", { class: "command", tabindex: 0, tLabel: "mcp.command" }, commandText(server)),
    server.problem ? h("p", { class: "note error" }, server.problem) : null,
    alwaysRow(server, refresh),
    h(
      "div",
      { class: "button-row" },
      button("mcp.list", () => listTools(server, refresh), "quiet"),
      button("mcp.remove", () => remove(server, refresh), "quiet"),
    ),
  );
}

/**
 * The tools that run without asking, and the way back to asking.
 * @param {McpServer} server
 * @param {() => void} refresh
 */
function alwaysRow(server, refresh) {
  if (!server.always.length) return null;
  const forget = async () => {
    await attempt(() => call("DELETE", `/api/mcp/${encodeURIComponent(server.name)}/always`));
    refresh();
  };
  const tools = () => new Intl.ListFormat(language()).format(server.always);
  return h(
    "p",
    { class: "always" },
    h("span", { t: ["mcp.always", { tools }] }),
    button("mcp.ask_again", forget, "quiet"),
  );
}

/**
 * Start a server and show its tools, after its whole command has been shown and confirmed.
 * @param {McpServer} server
 * @param {() => void} refresh
 */
async function listTools(server, refresh) {
  if (!server.confirmed && !(await confirmStart(server))) return;
  const tools = await attempt(() =>
    post(`/api/mcp/${encodeURIComponent(server.name)}/tools`, { confirm: true }),
  );
  refresh();
  if (!tools) return;
  await openDialog(
    ["mcp.tools_of", { name: server.name }],
    (close) => [
      h(
        "div",
        { class: "dialog-body" },
        tools.length
          ? h(
              "dl",
              { class: "tool-list" },
              ...tools.flatMap((/** @type {{name: string, description: string}} */ tool) => [
                h("dt", {}, tool.name),
                h("dd", {}, tool.description ?? ""),
              ]),
            )
          : h("p", { t: "mcp.no_tools" }),
      ),
      actions(button("dialog.close", () => close(null))),
    ],
    { wide: true },
  );
}

/** @param {McpServer} server */
function confirmStart(server) {
  return confirmDialog("mcp.start_title", ["mcp.start_text", { name: server.name }], "mcp.start", {
    detail: commandText(server),
  });
}

/** @param {() => void} refresh */
async function addServer(refresh) {
  const name = h("input", {
    class: "field",
    type: "text",
    required: true,
    pattern: "[A-Za-z0-9_\\-]{1,40}",
    autofocus: true,
  });
  const command = h("textarea", {
    class: "field verbatim",
    rows: 4,
    required: true,
    spellcheck: "false",
  });
  const env = h("textarea", { class: "field verbatim", rows: 2, spellcheck: "false" });
  const saved = await editDialog("mcp.add", [
    labelled("mcp.name", name),
    labelled("mcp.command", command, "mcp.command_hint"),
    labelled("mcp.env", env, "mcp.env_hint"),
  ]);
  if (!saved) return;
  const server = {
    name: name.value.trim(),
    command: lines(command.value),
    env: Object.fromEntries(
      lines(env.value).map((line) => [line.split("=", 1)[0], line.slice(line.indexOf("=") + 1)]),
    ),
  };
  await attempt(() => post("/api/mcp", server));
  refresh();
}

/**
 * @param {McpServer} server
 * @param {() => void} refresh
 */
async function remove(server, refresh) {
  const sure = await confirmDialog(
    "mcp.remove",
    ["mcp.remove_text", { name: server.name }],
    "mcp.remove",
    { danger: true },
  );
  if (!sure) return;
  await attempt(() => call("DELETE", `/api/mcp/${encodeURIComponent(server.name)}`));
  refresh();
}

/** @param {string} text */
const lines = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
