// What went wrong below an answer, in words, with what to do: again at once, or when the server said it is worth it.

import { announce } from "./announce.js";
import { el, icon } from "./dom.js";

const TITLES = {
  key: "The server wants an API key",
  limit: "Too many requests",
  busy: "The server is not ready",
  network: "No connection",
  cut: "The answer was cut off",
  request: "The server refused this request",
  server: "The server made an error",
  interrupted: "This answer was interrupted",
};
const INTERRUPTED = "The page was closed while it was being written.";
// Kinds that pass by themselves: after the server's Retry-After the page tries again unless told not to.
const PASSING = new Set(["limit", "busy"]);

/** `element` shows error {kind, message, retryAfter, requestId}; `close` stops its countdown. */
export class ErrorCard {
  constructor(error, { again, isOld, onKey, hasText }) {
    this.again = again;
    this.offers = true;
    const kept = hasText ? " What arrived is kept." : "";
    const title = TITLES[error.kind] ?? TITLES.server;
    const text = `${error.message ?? INTERRUPTED}${kept}`;
    this.buttons = el("div", { class: "buttons" });
    this.element = el(
      "section",
      { class: "error-card", "aria-label": title },
      icon("warning"),
      el("div", {}, el("strong", {}, title), el("p", { dir: "auto" }, text), requestLine(error.requestId), this.buttons),
    );
    if (error.kind === "key") this.askKey(onKey);
    else this.offerAgain();
    if (!isOld) announce(`${title}. ${text}`);
    if (PASSING.has(error.kind) && error.retryAfter !== null && error.retryAfter !== undefined && !isOld) this.countDown(error.retryAfter);
  }

  offerAgain() {
    this.button = el("button", { type: "button", class: "plain" }, "Try again");
    this.button.addEventListener("click", () => (this.close(), this.again()));
    this.buttons.append(this.button);
  }

  countDown(seconds) {
    let left = Math.max(1, Math.ceil(seconds));
    const cancel = el("button", { type: "button", class: "quiet" }, "Do not");
    const show = () => {
      this.button.textContent = "Try now";
      this.line.textContent = `Trying again in ${left} s.`;
    };
    this.line = el("span", { class: "countdown" });
    this.buttons.prepend(this.line);
    this.buttons.append(cancel);
    show();
    this.timer = setInterval(() => {
      left--;
      if (left > 0) return show();
      this.close();
      this.again();
    }, 1000);
    cancel.addEventListener("click", () => (this.rest(), this.button.focus()));
    this.cancel = cancel;
  }

  /** Do not try again by itself. */
  rest() {
    if (!this.cancel) return;
    this.close();
    this.line.remove();
    this.cancel.remove();
    this.button.textContent = "Try again";
  }

  askKey(onKey) {
    this.buttons.append(keyForm((key, isLasting) => onKey(key, isLasting, this.again)));
  }

  close() {
    clearInterval(this.timer);
  }
}

function requestLine(id) {
  return id ? el("p", { class: "request-id" }, "Request ", el("code", {}, id)) : null;
}

/** A form for an API key; `done(key, isLasting)`. */
export function keyForm(done, label = "Use this key") {
  const field = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-label": "API key", placeholder: "API key" });
  const lasting = el("input", { type: "checkbox" });
  const keep = el("label", { class: "check" }, lasting, "Keep it on this device");
  const form = el("form", { class: "key-form" }, el("div", { class: "row" }, field, el("button", { type: "submit", class: "primary" }, label)), keep);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) done(field.value.trim(), lasting.checked);
  });
  return form;
}
