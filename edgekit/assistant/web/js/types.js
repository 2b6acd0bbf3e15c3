/**
 * The shapes that travel between the page and its host, as JSDoc types. This module runs nothing.
 *
 * @typedef {{target: string, text: string, code?: string}} Reason
 * @typedef {{name: string, version: string, path: string, license: string, parameters: number}} Pack
 * @typedef {Pack & {bytes: number, current: boolean, problem?: string}} KnownPack
 * @typedef {{
 *   state: "none"|"loading"|"ready"|"failed", pack: Pack|null, target: string, device: string,
 *   runtime: string, context_length: number, reasons: Reason[], error: string|null,
 *   endpoint: {url: string, token_file: string}|null }} Engine
 * @typedef {{target: string, available: boolean, chosen: boolean, detail: string, reason: string,
 *   code: string}} Device
 * @typedef {{available: boolean, state: "none"|"downloading"|"building"|"ready"|"failed",
 *   fraction: number, detail: string, error?: string}} Demo
 * @typedef {{saved: number, lost: number, backup: string}} Recovery
 * @typedef {{cloud: "allowed"|"forbidden", mcp: "allowed"|"forbidden"|"listed", source: string,
 *   endpoint?: "allowed"|"forbidden"}} Policy
 * @typedef {{
 *   language: "auto"|"en"|"zh-CN", theme: "auto"|"light"|"dark", pack: string, target: string,
 *   temperature: number, top_p: number, top_k: number, max_tokens: number,
 *   repetition_penalty: number, system_memory_limit_gb: number, data_folder: string,
 *   autostart: boolean, send_key: "enter"|"ctrl-enter", endpoint_enabled: boolean }} Settings
 * @typedef {{
 *   version: string, engine: Engine, documents: {state: string, embedding: Embedding, error?: string|null},
 *   policy: Policy, cloud: {configured: boolean, name: string, host: string, model: string},
 *   settings: Settings, first_start: boolean, recovery: Recovery|null, demo: Demo,
 *   notices?: string[] }} AppState
 *
 * @typedef {{id: string, title: string, folder_id: string|null, pinned: boolean, created: string,
 *   updated: string, assistant_id: string|null}} Conversation
 * @typedef {{id: string, name: string}} Folder
 * @typedef {{conversation_id: string, message_id: string, title: string, snippet: string,
 *   marks: [number, number][]}} Hit
 * @typedef {{n: number, id: string, file: string, page: number|null, heading: string, text: string,
 *   why: "words"|"meaning"|"both"}} Passage
 * @typedef {{call_id: string, name: string, server: string, arguments: unknown, text?: string,
 *   error?: boolean, consent?: boolean}} ToolCall
 * @typedef {{tokens_per_second?: number, time_to_first_token?: number, prompt_tokens?: number,
 *   completion_tokens?: number}} Stats
 * @typedef {{kept: number, summarised: number, note: string}} Compaction
 * @typedef {{device?: string, runtime?: string, pack?: string, target?: string,
 *   cloud?: {name: string, host: string, model: string}, nothing_found?: boolean,
 *   compacted?: Compaction, suggestion?: string, error?: {code: string, message: string}}} Origin
 * @typedef {{
 *   id: string, conversation_id: string, parent_id: string|null,
 *   role: "system"|"user"|"assistant"|"tool", content: string, thinking: string, created: string,
 *   origin: Origin, stats: Stats, sources: Passage[], tool_calls: ToolCall[],
 *   state: "complete"|"stopped"|"failed"|"partial", html?: string }} Message
 * @typedef {{turn_id: string, answer_id: string}} RunningTurn
 *
 * @typedef {{id: string, name: string, name_key: string|null, icon: string, system_prompt: string,
 *   builtin: boolean}} Assistant
 * @typedef {{id: string, title: string, text: string, title_key: string|null,
 *   text_key: string|null, builtin: boolean}} Prompt
 *
 * @typedef {{id: string, path: string, kind: string,
 *   state: "queued"|"indexing"|"ready"|"failed"|"missing", files: number, passages: number,
 *   problems: string[]}} Source
 * @typedef {{done: number, total: number, current: string, state: "idle"|"indexing"}} Progress
 * @typedef {{state: "none"|"ready"|"rebuilding", id?: string, dim?: number, path?: string,
 *   fraction?: number}} Embedding
 * @typedef {{sources: Source[], progress: Progress, embedding: Embedding}} Documents
 *
 * @typedef {{configured: boolean, name: string, base_url: string, host: string, model: string,
 *   has_key: boolean, policy: "allowed"|"forbidden", log_path: string}} Cloud
 * @typedef {{kind: "you"|"answer"|"passage"|"system", text: string, file?: string}} PreviewPart
 * @typedef {{id: string, url: string, headers: Record<string, string>, body: string, bytes: number,
 *   sha256: string, redactions: {kind: string, count: number}[],
 *   found: {kind: string, count: number}[], parts: PreviewPart[],
 *   expires: string}} Preview
 * @typedef {{time: string, name: string, host: string, model: string, bytes: number,
 *   sha256: string, status: string}} CloudLogEntry
 * @typedef {{name: string, command: string[], resolved: string[], env: string[], confirmed: boolean,
 *   running: boolean, always: string[], problem: string|null}} McpServer
 */

export {};
