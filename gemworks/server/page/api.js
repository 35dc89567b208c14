// The server, as the page sees it: the public OpenAI routes and nothing private. Addresses are relative, so that the
// page works below a path of a proxy too.

import { events } from "./sse.js";

/** What went wrong. kind: "key", "limit", "busy", "network", "cut", "request" or "server". */
export class ChatError extends Error {
  constructor(kind, message, details = {}) {
    super(message);
    this.kind = kind;
    this.status = details.status ?? 0;
    this.requestId = details.requestId ?? "";
    this.retryAfter = details.retryAfter ?? null; // seconds
  }
}

export class Server {
  /** key() gives the API key to send, or "". */
  constructor(key) {
    this.key = key;
  }

  headers() {
    const key = this.key();
    return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  }

  /** Return [{id, context, eyes}]: context in tokens or null, eyes true, false or null where the server does not say. */
  async models() {
    const response = await this.fetch("v1/models", { method: "GET" });
    const { data } = await response.json();
    return data.map((model) => {
      const abilities = model.capabilities;
      const eyes = Array.isArray(abilities) ? abilities.includes("vision") : null;
      return { id: model.id, context: model.max_model_len ?? null, eyes, chats: chats(abilities) };
    });
  }

  /** Yield {text}, {finish} and {usage} of an answer. Throws ChatError; an abort ends it silently. */
  async *chat(body, signal) {
    const request = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.fetch("v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal });
    let isWhole = false; // the last piece came; the usage may follow it
    try {
      for await (const data of events(response.body)) {
        if (data.trim() === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw midway(event.error, response);
        const choice = event.choices?.[0];
        if (choice?.delta?.content) yield { text: choice.delta.content };
        if (choice?.finish_reason) {
          isWhole = true;
          yield { finish: choice.finish_reason };
        }
        if (event.usage) yield { usage: event.usage };
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error instanceof ChatError) throw error;
      throw new ChatError("cut", "The connection was lost while the answer was being written.");
    }
    if (!isWhole && !signal?.aborted) throw new ChatError("cut", "The connection ended before the answer did.");
  }

  async fetch(path, options) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: this.headers(), cache: "no-store" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ChatError("network", "The server does not answer. Is it running, and is this device connected?");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

/** A model that only embeds is of no use here; one that says nothing is taken to chat. */
function chats(abilities) {
  return !Array.isArray(abilities) || abilities.length === 0 || abilities.some((name) => /completion|chat/.test(name));
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    const body = JSON.parse(text);
    message = body.error?.message ?? body.error ?? body.detail ?? "";
  } catch {
    // a proxy's own page: its markup says less than the status
  }
  const { status } = response;
  const kind = status === 401 || status === 403 ? "key" : status === 429 ? "limit" : status === 503 ? "busy" : status >= 500 ? "server" : "request";
  return new ChatError(kind, String(message || `The server answered ${status} ${response.statusText}`.trim() + "."), {
    status,
    requestId: response.headers.get("x-request-id") ?? "",
    retryAfter: retryAfter(response.headers.get("retry-after")),
  });
}

function midway(error, response) {
  const requestId = response.headers.get("x-request-id") ?? "";
  return new ChatError("server", String(error.message ?? error), { requestId });
}

/** Seconds of a Retry-After header (a number or a date), or null. */
export function retryAfter(header, now = Date.now()) {
  if (!header) return null;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(0, seconds);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}
