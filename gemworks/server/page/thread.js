// The conversation on the page: its messages in order, and a scroll position that follows an answer until the reader
// scrolls away from it.

import { path } from "./conversation.js";
import { byId, el, icon } from "./dom.js";
import { AnswerView, QuestionView } from "./message.js";

// Nearer to the end than this is at the end.
const NEAR_PX = 48;

export class Thread {
  /** `actions`: what the messages' buttons do (see message.js); `empty(parent)` fills a conversation without messages. */
  constructor(actions, empty) {
    Object.assign(this, { actions, empty });
    this.scroller = byId("scroller");
    this.list = byId("thread");
    this.down = byId("to-end");
    this.views = new Map();
    this.isFollowing = true;
    this.top = 0;
    this.scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.down.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(this.list);
  }

  /** Show a conversation; views of messages that stay are kept. */
  show(conversation) {
    const isSame = this.conversation === conversation;
    this.conversation = conversation;
    if (!isSame) {
      for (const view of this.views.values()) view.close?.();
      this.views.clear();
    }
    const shown = path(conversation);
    const ids = new Set(shown.map((message) => message.id));
    for (const [id, view] of this.views) {
      if (ids.has(id)) continue;
      view.close?.();
      this.views.delete(id);
    }
    const context = { ...this.actions, conversation, onGrow: () => this.follow() };
    for (const message of shown) {
      const known = this.views.get(message.id);
      // Buttons of versions may have changed: questions are cheap to show anew.
      if (known instanceof QuestionView) known.show();
      else if (!known) this.views.set(message.id, view(message, context));
    }
    for (const message of shown.slice(0, -1)) this.views.get(message.id).rest?.();
    place(this.list, shown.length ? shown.map((message) => this.views.get(message.id).element) : [this.empty()]);
    if (!isSame) this.toEnd("instant");
  }

  /** The view of a message, if it is shown. */
  view(message) {
    return this.views.get(message.id);
  }

  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    // Upwards is always the reader (what is added grows downwards); the end, reached again, is followed again.
    if (scrollTop < this.top - 1 && !isAtEnd) this.isFollowing = false;
    else if (isAtEnd) this.isFollowing = true;
    this.top = scrollTop;
    this.down.hidden = isAtEnd;
  }

  follow() {
    if (this.isFollowing) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      this.top = this.scroller.scrollTop;
    } else this.onScroll();
  }

  toEnd(behavior) {
    this.isFollowing = true;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: behavior ?? (isCalm ? "instant" : "smooth") });
  }
}

/** Make `elements` the children, moving only what is not in its place (a moved element loses focus and scroll). */
function place(parent, elements) {
  elements.forEach((element, at) => {
    if (parent.children[at] === element) return;
    if (parent.children[at] && !elements.includes(parent.children[at])) parent.children[at].replaceWith(element);
    else parent.insertBefore(element, parent.children[at] ?? null);
  });
  while (parent.children.length > elements.length) parent.lastElementChild.remove();
}

function view(message, context) {
  return message.role === "user" ? new QuestionView(message, context) : new AnswerView(message, context);
}

/** What stands where a conversation will be. */
export function welcome({ title, text, suggestions, onSuggestion, extra }) {
  const chips = el("div", { class: "suggestions" });
  for (const suggestion of suggestions) {
    const chip = el("button", { type: "button", class: "chip" }, suggestion);
    chip.addEventListener("click", () => onSuggestion(suggestion));
    chips.append(chip);
  }
  return el("div", { class: "welcome" }, icon("gem"), el("p", { class: "welcome-title" }, title), text && el("p", {}, text), extra, chips);
}
