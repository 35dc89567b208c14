// What screen readers are told, politely: an answer paragraph by paragraph as each is complete, and short notices.

import { byId, el } from "./dom.js";

/** Say a short notice. */
export function announce(text) {
  byId("notices").replaceChildren(el("p", {}, text));
}

/** Speak an answer as it grows. One of these per answer. */
export class Speaker {
  constructor() {
    this.spoken = 0;
    byId("spoken").replaceChildren();
  }

  /** Say what is complete and has not been said. */
  say(texts) {
    for (const text of texts.slice(this.spoken)) if (text.trim()) byId("spoken").append(el("p", {}, text));
    this.spoken = Math.max(this.spoken, texts.length);
  }
}
