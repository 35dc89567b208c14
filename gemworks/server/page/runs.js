// Answers being written: one per conversation at most, also in conversations that are not shown.

import { ChatError } from "./api.js";
import { requestMessages } from "./conversation.js";
import { dataUrl } from "./images.js";

const SAVE_EVERY_MS = 1000;

/** Starts answers and keeps them stored as they grow. `heard(run, kind)`: "text", "end". */
export class Runs {
  constructor(server, store, heard) {
    Object.assign(this, { server, store, heard });
    this.running = new Map(); // conversation id -> Run
  }

  get(conversation) {
    return this.running.get(conversation.id);
  }

  /** Write an answer into `message` (empty, its question is its parent). */
  start(conversation, message, parameters) {
    const run = { conversation, message, control: new AbortController(), saved: performance.now() };
    this.running.set(conversation.id, run);
    run.ended = this.write(run, parameters);
  }

  async write(run, parameters) {
    const { conversation, message } = run;
    try {
      await this.stream(run, parameters);
      message.state = run.control.signal.aborted ? "stopped" : "done";
    } catch (error) {
      const isStopped = run.control.signal.aborted;
      message.state = isStopped ? "stopped" : "failed";
      message.error = isStopped ? null : errorFields(error);
    }
    this.running.delete(conversation.id);
    await this.save(conversation);
    this.heard(run, "end");
  }

  /** Stop the answer of a conversation, if there is one, and wait until it has ended. */
  async stop(conversation) {
    const run = this.get(conversation);
    run?.control.abort();
    await run?.ended;
  }

  async stream(run, parameters) {
    const { conversation, message, control } = run;
    const question = conversation.messages.find((other) => other.id === message.parent);
    const messages = await requestMessages(conversation, question, async (id) => {
      const image = await this.store.image(id);
      return image && dataUrl(image.blob);
    });
    if (control.signal.aborted) return;
    const clock = new Clock();
    for await (const event of this.server.chat({ model: message.model, messages, ...parameters }, control.signal)) {
      if (event.text) {
        clock.text();
        message.text += event.text;
        this.heard(run, "text");
        if (performance.now() - run.saved > SAVE_EVERY_MS) this.save(conversation, run);
      }
      if (event.finish) message.finish = event.finish;
      message.stats = clock.stats(event.usage);
    }
  }

  async save(conversation, run) {
    if (run) run.saved = performance.now();
    try {
      await this.store.save(conversation);
    } catch (error) {
      this.heard(run ?? { conversation }, "unsaved", error);
    }
  }

  /** The page goes away: keep what arrived. */
  saveAll() {
    for (const run of this.running.values()) this.save(run.conversation, run);
  }
}

function errorFields(error) {
  if (!(error instanceof ChatError)) return { kind: "server", message: String(error?.message ?? error), retryAfter: null };
  const { kind, message, status, requestId, retryAfter } = error;
  return { kind, message, status, requestId, retryAfter };
}

/** Times of one answer, as this page saw them. */
class Clock {
  constructor() {
    this.sent = performance.now();
    this.pieces = 0;
  }

  text() {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces++;
  }

  /** Tokens per second count what came after the first token; null where there is too little to divide by. */
  stats(usage) {
    this.usage = usage ?? this.usage;
    const answerTokens = this.usage?.completion_tokens ?? null;
    const seconds = (this.last - this.first) / 1000;
    const counted = (answerTokens ?? this.pieces) - 1;
    return {
      rate: counted >= 4 && seconds > 0.02 ? counted / seconds : null,
      firstTokenMs: this.first === undefined ? null : this.first - this.sent,
      promptTokens: this.usage?.prompt_tokens ?? null,
      answerTokens,
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? null,
    };
  }
}
