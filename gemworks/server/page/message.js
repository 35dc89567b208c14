// One message on the page: a question (a bubble, with pictures) or an answer (Markdown that grows).

import { Speaker, announce } from "./announce.js";
import { copyText } from "./clipboard.js";
import { versions } from "./conversation.js";
import { el, icon, iconButton } from "./dom.js";
import { ErrorCard } from "./errorcard.js";
import { MarkdownText, spokenText } from "./markdown.js";
import { patch } from "./patch.js";

/** Shared by both kinds: the frame, and the row of buttons below. */
class MessageView {
  constructor(message, context) {
    Object.assign(this, { message, context });
    this.body = el("div", { class: "body" });
    this.foot = el("div", { class: "foot" });
  }

  /** "2 / 3" with arrows, where there is more than one version. */
  versionButtons() {
    const all = versions(this.context.conversation, this.message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.message);
    const go = (step) => () => this.context.onChoose(all[at + step]);
    return el(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      iconButton("left", "Previous version", go(-1), { disabled: at === 0 }),
      el("span", { class: "count" }, `${at + 1} / ${all.length}`),
      iconButton("right", "Next version", go(1), { disabled: at === all.length - 1 }),
    );
  }

  copyButton() {
    const button = iconButton("copy", "Copy", () => copyText(this.message.text, button), { class: "icon-button copy" });
    return button;
  }
}

export class QuestionView extends MessageView {
  constructor(message, context) {
    super(message, context);
    this.element = el("article", { class: "message question" }, el("h2", { class: "off-screen" }, "You"), this.body, this.foot);
    this.show();
  }

  show() {
    const { message, context } = this;
    this.body.replaceChildren();
    if (message.images.length) this.body.append(thumbnails(message.images, context));
    if (message.text) this.body.append(el("div", { class: "bubble", dir: "auto" }, message.text));
    const edit = iconButton("edit", "Edit and send again", () => this.edit());
    this.foot.replaceChildren(...[this.versionButtons(), this.copyButton(), edit].filter(Boolean));
  }

  /** Turn the bubble into a field. Sending makes a new version; the old one stays. */
  edit() {
    const { message, context } = this;
    const field = el("textarea", { "aria-label": "Your message", dir: "auto", rows: "1" });
    field.value = message.text;
    const send = el("button", { type: "submit", class: "primary" }, "Send");
    const cancel = el("button", { type: "button", class: "plain" }, "Cancel");
    const form = el("form", { class: "edit" }, field, el("div", { class: "buttons" }, cancel, send));
    const end = () => {
      this.show();
      this.foot.querySelector("button:last-child").focus();
    };
    const submit = () => {
      if (!field.value.trim() && !message.images.length) return;
      context.onEdit(message, field.value);
    };
    cancel.addEventListener("click", end);
    form.addEventListener("submit", (event) => (event.preventDefault(), submit()));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), submit());
      if (event.key === "Escape") (event.preventDefault(), event.stopPropagation(), end());
    });
    field.addEventListener("input", () => fit(field));
    this.body.replaceChildren(...(message.images.length ? [thumbnails(message.images, context)] : []), form);
    this.foot.replaceChildren();
    fit(field);
    field.focus();
  }
}

export class AnswerView extends MessageView {
  constructor(message, context) {
    super(message, context);
    this.markdown = new MarkdownText();
    this.nodes = [];
    this.body.classList.add("prose");
    const name = message.model || "Answer";
    this.element = el("article", { class: "message answer" }, el("h2", { class: "who" }, icon("gem"), name), this.body, this.foot);
    this.isLive = message.state === "streaming";
    if (this.isLive) {
      this.speaker = new Speaker();
      this.cost = 0;
      this.element.classList.add("streaming");
      this.element.setAttribute("aria-busy", "true");
    }
    this.draw();
    if (!this.isLive) this.finish(true);
  }

  /** The text has grown: draw it with the next frame, or later where drawing takes long. */
  grow() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    // At most a quarter of the time goes into drawing: a huge table is drawn less often, not less smoothly scrolled.
    setTimeout(() => requestAnimationFrame(() => this.frame()), this.cost > 8 ? this.cost * 3 : 0);
  }

  frame() {
    this.isScheduled = false;
    if (!this.isLive) return;
    const began = performance.now();
    this.draw();
    this.cost = performance.now() - began;
    this.context.onGrow();
  }

  draw() {
    const nodes = this.markdown.update(this.message.text, !this.isLive);
    patch(this.body, this.nodes, nodes);
    this.nodes = nodes;
    this.element.classList.toggle("waiting", this.isLive && nodes.length === 0);
    if (this.isLive) this.speaker.say(nodes.slice(0, this.markdown.settledCount).map(spokenText));
  }

  /** The answer has ended, well or not. */
  finish(isOld = false) {
    const { message, context } = this;
    this.isLive = false;
    this.element.classList.remove("streaming", "waiting");
    this.element.removeAttribute("aria-busy");
    this.draw();
    if (this.speaker) this.speaker.say(this.nodes.map(spokenText));
    this.card?.close();
    this.card = noteOf(message, context, isOld);
    this.foot.replaceChildren(this.buttons(), statsRow(message.stats, context));
    if (this.card) this.foot.before(this.card.element);
    if (!isOld) announce(ENDS[message.state] ?? "");
  }

  buttons() {
    // A card below a failed answer has the same button, in words.
    const again = !this.card?.offers && iconButton("again", "Answer again", () => this.context.onAgain(this.message));
    const kids = [this.versionButtons(), this.message.text && this.copyButton(), again];
    return el("div", { class: "buttons" }, ...kids);
  }

  /** Something was said after this answer: it does not try again by itself any more. */
  rest() {
    this.card?.rest?.();
  }

  close() {
    this.isLive = false;
    this.card?.close();
  }
}

const ENDS = { done: "Answer complete.", stopped: "Stopped.", failed: "The answer failed." };

/** What is said below an answer that did not end by itself; null below one that did. */
function noteOf(message, context, isOld) {
  const again = () => context.onAgain(message);
  if (message.state === "failed") return new ErrorCard(message.error, { again, isOld, onKey: context.onKey, hasText: Boolean(message.text) });
  if (message.state === "interrupted") return new ErrorCard({ kind: "interrupted" }, { again, isOld });
  if (message.state === "stopped") return { element: el("p", { class: "note" }, "Stopped."), close() {} };
  if (message.finish === "length") {
    const text = "The answer reached its token limit. Max tokens, in the settings, allows longer ones.";
    return { element: el("p", { class: "note" }, text), close() {} };
  }
  if (!message.text) return { element: el("p", { class: "note" }, "The model answered with nothing."), close() {} };
  return null;
}

/** "41.2 tokens/s", "0.18 s to first token" ... as the server and the clock of this page give them. */
function statsRow(stats) {
  const row = el("dl", { class: "stats" });
  const add = (name, value, title) => row.append(el("div", { title }, el("dt", {}, name), el("dd", {}, value)));
  if (!stats) return row;
  if (stats.rate !== null) add("tokens/s", stats.rate.toFixed(stats.rate < 100 ? 1 : 0), "Tokens a second, after the first");
  if (stats.firstTokenMs !== null) add("first token", duration(stats.firstTokenMs), "From sending to the first token");
  if (stats.answerTokens !== null) add("tokens", stats.answerTokens.toLocaleString("en"), "Tokens of the answer");
  if (stats.cachedTokens !== null && stats.promptTokens !== null) {
    const [cached, all] = [stats.cachedTokens, stats.promptTokens].map((count) => count.toLocaleString("en"));
    add("cached", `${cached} of ${all}`, "Prompt tokens that were not computed again");
  }
  return row;
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Pictures of a message; each opens large. */
function thumbnails(images, context) {
  const row = el("div", { class: "thumbnails" });
  for (const image of images) {
    const picture = el("img", { alt: image.name || "Picture", width: image.width || null, height: image.height || null });
    const button = el("button", { type: "button", class: "thumbnail", "aria-label": `Show ${image.name || "picture"}` }, picture);
    button.addEventListener("click", () => context.onPicture(picture.src, image.name));
    context.imageUrl(image.id).then((url) => (url ? (picture.src = url) : button.replaceWith(el("span", { class: "lost" }, "Picture is gone"))));
    row.append(button);
  }
  return row;
}

/** Make a text field as tall as its text. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}
