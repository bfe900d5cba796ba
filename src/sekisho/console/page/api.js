// The server's OpenAI-compatible interface, as this page uses it. All trouble leaves here as an ApiError.

import { SseParser } from "./sse.js";

// `kind` names the texts in messages.js; `id` is in the server's log; `retryAfterS` counts from now.
export class ApiError extends Error {
  constructor(kind, { message = "", id = "", retryAfterS = 0 } = {}) {
    super(message);
    this.kind = kind;
    this.id = id;
    this.retryAfterS = retryAfterS;
  }
}

export function validKey(key) {
  return /^[\x21-\x7e]+$/.test(key); // anything else cannot stand in a header
}

export async function listModels(key) {
  const response = await request("v1/models", key, {});
  const list = await response.json().catch(() => null);
  if (!list || !Array.isArray(list.data)) throw new ApiError("server");
  return list.data.map((model) => String(model.id));
}

// Streams one answer: yields chat.completion.chunk objects, returns when the server said [DONE].
export async function* streamChat(key, body, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw signal.aborted ? error : new ApiError("cut", { message: String(error.message || error) });
      });
      const events = parser.feed(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      for (const { event, data } of events) {
        if (data === "[DONE]") return;
        const chunk = parseChunk(data);
        if (event === "error" || chunk.error) throw streamError(chunk.error || chunk);
        yield chunk;
      }
      if (done) throw new ApiError("cut");
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed: nothing left to free
  }
}

function parseChunk(data) {
  try {
    const chunk = JSON.parse(data);
    if (chunk !== null && typeof chunk === "object") return chunk;
  } catch {
    // told below, with the frame itself
  }
  throw new ApiError("failed", { message: data.slice(0, 200) });
}

function streamError(error) {
  const kind = error.code === "context_length_exceeded" ? "context" : "failed";
  return new ApiError(kind, { message: String(error.message || ""), id: String(error.id || "") });
}

async function request(path, key, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      ...options,
      headers: { ...options.headers, authorization: `Bearer ${key}` },
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("offline", { message: String(error.message || error) });
  }
  if (response.ok) return response;
  throw await failure(response);
}

async function failure(response) {
  const body = await response.json().catch(() => ({})); // a proxy in between may answer in HTML
  const error = body.error && typeof body.error === "object" ? body.error : {};
  return new ApiError(kindOf(response.status, String(error.code || "")), {
    message: String(error.message || `HTTP ${response.status}`),
    id: String(error.id || response.headers.get("x-request-error-id") || ""),
    retryAfterS: retryAfter(response.headers.get("retry-after")),
  });
}

function kindOf(status, code) {
  if (code === "insufficient_quota") return "quota";
  if (code === "context_length_exceeded") return "context";
  const kinds = { 401: "unauthenticated", 403: "forbidden", 404: "not_found", 413: "too_large", 429: "rate" };
  if (kinds[status]) return kinds[status];
  if (status < 500) return "invalid";
  return status === 502 ? "failed" : [503, 504].includes(status) ? "unavailable" : "server";
}

function retryAfter(value) {
  if (!value) return 0;
  const seconds = /^\d+(\.\d+)?$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : 0;
}
