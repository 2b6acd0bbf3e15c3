/**
 * Requests to the host: JSON in and out, errors as `ApiError`, answers streamed as events.
 */

import { has, t } from "./i18n.js";

/** A refusal of the host: a code that the page may know and a sentence that always stands. */
export class ApiError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {number} status
   */
  constructor(code, message, status) {
    super(message);
    this.code = code;
    this.status = status;
  }

  /** The sentence for the person: translated where the code is known. */
  get sentence() {
    return errorSentence(this.code, this.message);
  }
}

/**
 * @param {string} code
 * @param {string} message
 */
export function errorSentence(code, message) {
  return has(`error.${code}`)
    ? t(`error.${code}`, { detail: message })
    : message || t("error.unknown");
}

/**
 * What to show for anything that was thrown.
 * @param {unknown} error
 */
export function sentenceOf(error) {
  if (error instanceof ApiError) return error.sentence;
  return error instanceof Error && error.message ? error.message : t("error.unknown");
}

/**
 * @param {string} method
 * @param {string} path
 * @param {BodyInit|undefined} body
 * @param {string|undefined} type
 */
async function request(method, path, body, type) {
  let response;
  try {
    response = await fetch(path, {
      method,
      body,
      headers: type ? { "Content-Type": type } : {},
      credentials: "same-origin",
    });
  } catch {
    throw new ApiError("host_gone", "", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const error = answer?.error ?? {};
  const code = error.code ?? (response.status === 401 ? "unauthorised" : "unknown");
  throw new ApiError(code, error.message ?? "", response.status);
}

/**
 * A JSON request; gives the JSON answer, or null where there is none.
 * @param {string} method
 * @param {string} path
 * @param {unknown} [data]
 * @returns {Promise<any>}
 */
export async function call(method, path, data) {
  const body = data === undefined ? undefined : JSON.stringify(data);
  const response = await request(method, path, body, body && "application/json");
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** @param {string} path */
export const get = (path) => call("GET", path);

/**
 * @param {string} path
 * @param {unknown} [data]
 */
export const post = (path, data = {}) => call("POST", path, data);

/**
 * Send a file as it is.
 * @param {string} path
 * @param {Blob} file
 */
export async function upload(path, file) {
  const response = await request("POST", path, file, "application/octet-stream");
  return response.json();
}

/**
 * A request whose answer is a stream of events.
 * @param {string} path
 * @param {unknown} data what is sent; undefined: the stream is only read
 * @param {(name: string, data: any) => void} onEvent
 */
export async function stream(path, data, onEvent) {
  const body = data === undefined ? undefined : JSON.stringify(data);
  const response = await request(body ? "POST" : "GET", path, body, body && "application/json");
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read(); // throws when the connection breaks
    rest += value ?? "";
    const events = rest.split(/\r?\n\r?\n/);
    rest = events.pop() ?? "";
    for (const event of events) dispatch(event, onEvent);
    if (done) break;
  }
  if (rest.trim()) dispatch(rest, onEvent);
}

/**
 * @param {string} event the lines of one event
 * @param {(name: string, data: any) => void} onEvent
 */
function dispatch(event, onEvent) {
  let name = "message";
  const data = [];
  for (const line of event.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  if (data.length) onEvent(name, JSON.parse(data.join("\n")));
}
