// A block of code on the page: its language, a button that copies it, and its lines, coloured as they are complete.

import { copyText } from "./clipboard.js";
import { el, icon } from "./dom.js";
import { highlighter } from "./highlight.js";
import { splitReordering } from "./links.js";

// Past this many lines colour costs more than it gives.
const MAX_COLOURED_LINES = 3000;

/** `element` shows the code; `update` gives it a longer text. */
export class CodeBlock {
  constructor(language, text) {
    this.colour = highlighter(language);
    this.text = "";
    this.state = null; // of the highlighter, after the last complete line
    this.lines = 0; // complete ones
    this.done = 0; // characters of complete lines
    this.code = el("code", { dir: "ltr" });
    this.tail = []; // nodes of the line that is not complete
    const copy = el("button", { type: "button", class: "quiet copy", "aria-label": "Copy code" }, icon("copy"), "Copy");
    copy.addEventListener("click", () => copyText(this.text, copy));
    this.element = el(
      "div",
      { class: "code", dir: "ltr" },
      el("div", { class: "code-head" }, el("span", {}, language || "text"), copy),
      el("pre", { tabindex: "0", role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, this.code),
    );
    this.update(text);
  }

  update(text) {
    if (!text.startsWith(this.text.slice(0, this.done))) {
      Object.assign(this, { state: null, lines: 0, done: 0, tail: [] });
      this.code.replaceChildren();
    }
    for (const node of this.tail) node.remove();
    this.text = text;
    const fresh = document.createDocumentFragment();
    for (let end; (end = text.indexOf("\n", this.done)) >= 0; this.done = end + 1) {
      const [tokens, state] = this.tokens(text.slice(this.done, end));
      this.state = state;
      this.lines++;
      fresh.append(...tokens, "\n");
    }
    this.tail = this.tokens(text.slice(this.done))[0];
    fresh.append(...this.tail);
    this.code.append(fresh);
  }

  tokens(line) {
    if (this.lines > MAX_COLOURED_LINES) return [plain(line), null];
    const [tokens, state] = this.colour(line, this.state);
    return [tokens.flatMap(([kind, text]) => (kind ? [el("span", { class: `t-${kind}` }, ...plain(text))] : plain(text))), state];
  }
}

function plain(text) {
  return splitReordering(text, true).map((part) =>
    part.mark ? el("span", { class: "mark", "data-code": part.mark }) : document.createTextNode(part.text),
  );
}
