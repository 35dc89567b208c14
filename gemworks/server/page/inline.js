// Markdown, second pass: the text of one block -> a tree of spans (emphasis, code, links, line breaks, mathematics).
//
// CommonMark's delimiter stack, so that emphasis costs linear time and "***" nests as readers expect. Raw HTML does not
// exist here: "<b>" is five characters of text. Under `isOpen` (the end of an answer that still streams) what has not
// been closed is taken as if it would be: the reader sees bold text grow and never the two stars before it.

import { labelOf } from "./blocks.js";

const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPECIAL = /[\\`*_~[\]!<&$\nhw]/g;
const MAX_DEPTH = 60;

/** Return the spans of a text: strings and {type, kids, ...}. `definitions` are those of parseBlocks. */
export function parseInline(text, definitions = new Map(), isOpen = false) {
  return new Scanner(text, definitions, isOpen).run();
}

class Scanner {
  constructor(text, definitions, isOpen) {
    Object.assign(this, { text, definitions, isOpen, pos: 0 });
    this.nodes = []; // flat: strings, spans, and {delimiter} that emphasis turns into spans
    this.brackets = [];
    this.absent = new Map(); // run length of backticks -> no such run begins at or after this position
  }

  run() {
    while (this.pos < this.text.length) {
      SPECIAL.lastIndex = this.pos;
      const match = SPECIAL.exec(this.text);
      const at = match ? match.index : this.text.length;
      if (at > this.pos) this.add(this.text.slice(this.pos, at));
      this.pos = at;
      if (match) this.special(match[0]);
    }
    return merged(this.emphasis(0, this.isOpen));
  }

  add(node) {
    this.nodes.push(node);
  }

  take(count) {
    this.add(this.text.slice(this.pos, this.pos + count));
    this.pos += count;
  }

  special(char) {
    if (char === "\n") this.newline();
    else if (char === "\\") this.escape();
    else if (char === "`") this.code();
    else if (char === "*" || char === "_" || char === "~") this.delimiter(char);
    else if (char === "[") this.openBracket(false);
    else if (char === "!" && this.text[this.pos + 1] === "[") this.openBracket(true);
    else if (char === "]") this.closeBracket();
    else if (char === "<") this.autolink();
    else if (char === "&") this.entity();
    else if (char === "$") this.dollar();
    else if (char === "h" || char === "w") this.bareAddress();
    else this.take(1);
  }

  newline() {
    const last = this.nodes.at(-1);
    const isHard = typeof last === "string" && last.endsWith("  ");
    if (typeof last === "string") this.nodes[this.nodes.length - 1] = last.replace(/ +$/, "");
    this.add(isHard ? { type: "break" } : "\n");
    this.pos++;
    while (this.text[this.pos] === " ") this.pos++;
  }

  escape() {
    const next = this.text[this.pos + 1];
    if (next === "\n") {
      this.add({ type: "break" });
      this.pos += 2;
      while (this.text[this.pos] === " ") this.pos++;
    } else if (next === "(" || next === "[") this.texBrackets(next);
    else if (next && /[!-/:-@[-`{-~]/.test(next)) {
      this.add(next);
      this.pos += 2;
    } else this.take(1);
  }

  /** \( ... \) and \[ ... \]: mathematics as models write it. */
  texBrackets(open) {
    const close = this.text.indexOf(open === "(" ? "\\)" : "\\]", this.pos + 2);
    const text = close > 0 ? this.text.slice(this.pos + 2, close) : "";
    // Brackets that were only escaped, "\[1\]", hold nothing of a formula.
    if (!(open === "(" ? /[\\^_={}+*/<>|-]|^\s*\w{1,2}\s*$/ : /[\\^_={}+]/).test(text)) {
      this.add(open);
      this.pos += 2;
      return;
    }
    this.add({ type: "math", text: text.trim(), isBlock: open === "[" });
    this.pos = close + 2;
  }

  /** $x$ and $$x$$; "$5 and $10" is money: no space inside the marks and no digit after them. */
  dollar() {
    const rest = this.text.slice(this.pos, this.pos + 2000);
    const block = /^\$\$([^$]+)\$\$/.exec(rest);
    const inner = !block && /^\$((?:[^\s$\\]|\\.)(?:(?:[^$\n\\]|\\.)*(?:[^\s$\\]|\\.))?)\$(?![\d\w])/.exec(rest);
    const match = block || inner;
    if (!match) return this.take(1);
    this.add({ type: "math", text: match[1].trim(), isBlock: Boolean(block) });
    this.pos += match[0].length;
  }

  code() {
    const run = /^`+/.exec(this.text.slice(this.pos))[0];
    const close = this.closingRun(run.length);
    if (close < 0 && !(this.isOpen && run.length < 3 && this.pos + run.length < this.text.length)) {
      if (this.isOpen && this.pos + run.length === this.text.length) this.pos = this.text.length;
      else this.take(run.length);
      return;
    }
    const end = close < 0 ? this.text.length : close;
    let text = this.text.slice(this.pos + run.length, end).replace(/\n/g, " ");
    if (/^ .* $/s.test(text) && text.trim()) text = text.slice(1, -1);
    this.add({ type: "code", text });
    this.pos = close < 0 ? end : close + run.length;
  }

  /** Where a run of exactly `length` backticks begins past the one at the cursor, or -1. */
  closingRun(length) {
    if (this.absent.has(length)) return -1;
    const runs = /`+/g;
    runs.lastIndex = this.pos + length;
    for (let match; (match = runs.exec(this.text)); ) if (match[0].length === length) return match.index;
    this.absent.set(length, true);
    return -1;
  }

  delimiter(char) {
    let end = this.pos;
    while (this.text[end] === char) end++;
    const length = end - this.pos;
    const before = lastChar(this.text, this.pos);
    const after = firstChar(this.text, end);
    const isAfterOpen = after && !/\s/u.test(after);
    const isBeforeOpen = before && !/\s/u.test(before);
    const left = isAfterOpen && (!PUNCTUATION.test(after) || !isBeforeOpen || PUNCTUATION.test(before));
    const right = isBeforeOpen && (!PUNCTUATION.test(before) || !isAfterOpen || PUNCTUATION.test(after));
    const canOpen = char === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
    const canClose = char === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
    this.pos = end;
    if (this.isOpen && end === this.text.length && length < 4 && (!canClose || !this.hasOpener(char))) return;
    // One tilde means "about" far more often than it strikes out; three are no mark either.
    if (char === "~" && length !== 2) return this.add(char.repeat(length));
    this.add({ delimiter: char, count: length, length, canOpen, canClose });
  }

  hasOpener(char) {
    return this.nodes.some((node) => node.delimiter === char && node.canOpen);
  }

  openBracket(isImage) {
    const mark = isImage ? "![" : "[";
    this.brackets.push({ index: this.nodes.length, isImage, pos: this.pos + mark.length, isActive: true });
    this.add({ bracket: mark });
    this.pos += mark.length;
  }

  closeBracket() {
    const open = this.brackets.pop();
    if (!open?.isActive) return this.take(1);
    const target = this.destination(open);
    if (!target) return this.take(1);
    const kids = merged(this.emphasis(open.index + 1, false));
    this.nodes.length = open.index;
    this.pos = target.end;
    this.add({ type: open.isImage ? "image" : "link", href: target.href, title: target.title, kids });
    // A link holds no link.
    if (!open.isImage) for (const bracket of this.brackets) if (!bracket.isImage) bracket.isActive = false;
  }

  /** Read what follows "]": (address "title"), [label], or nothing; null where no link comes of it. */
  destination(open) {
    const after = this.pos + 1;
    const label = this.text.slice(open.pos, this.pos);
    if (this.text[after] === "(") {
      const found = inlineTarget(this.text, after);
      if (found) return found;
      if (this.isOpen && /^\([^\s()]*$/.test(this.text.slice(after))) return { href: "", title: "", end: this.text.length };
    }
    const second = /^\[((?:[^\\[\]]|\\.)*)\]/.exec(this.text.slice(after, after + 1002));
    const name = second?.[1].trim() ? second[1] : /(^|[^\\])[[\]]/.test(label) ? "" : label;
    const known = name.trim() && this.definitions.get(labelOf(name));
    if (!known) return null;
    return { href: unescape(known.href), title: unescape(known.title), end: after + (second ? second[0].length : 0) };
  }

  /** <https://...>, <name@host>, and <br>, the one tag that models write in tables. */
  autolink() {
    const line = /^<br[ \t]*\/?>\n?/i.exec(this.text.slice(this.pos, this.pos + 12));
    if (line) {
      this.add({ type: "break" });
      this.pos += line[0].length;
      return;
    }
    const match = /^<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*|[\w.!#$%&'*+/=?^`{|}~-]+@[a-z0-9][a-z0-9.-]*)>/i.exec(
      this.text.slice(this.pos, this.pos + 2000),
    );
    if (!match) return this.take(1);
    const isMail = !/^[a-z][a-z0-9+.-]{1,31}:/i.test(match[1]);
    this.add({ type: "link", href: (isMail ? "mailto:" : "") + match[1], title: "", kids: [match[1]] });
    this.pos += match[0].length;
  }

  /** https://... and www.... without brackets, as GFM finds them. */
  bareAddress() {
    const rest = this.text.slice(this.pos, this.pos + 2000);
    const before = this.text[this.pos - 1];
    const match = (!before || /[\s*_~("'[{:]/.test(before)) && /^(https?:\/\/|www\.)[^\s<>"]+/.exec(rest);
    if (!match || this.brackets.some((bracket) => bracket.isActive && !bracket.isImage)) return this.take(1);
    let address = match[0].replace(/[?!.,:;*_~'"`]+$/, "");
    while (address.endsWith(")") && count(address, ")") > count(address, "(")) address = address.slice(0, -1);
    address = address.replace(/[?!.,:;*_~'"`]+$/, "").replace(/\]$/, "");
    if (address.length <= match[1].length) return this.take(1);
    const href = (match[1] === "www." ? "https://" : "") + address;
    this.add({ type: "link", href, title: "", kids: [address] });
    this.pos += address.length;
  }

  entity() {
    const match = /^&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z][a-z0-9]{1,31}));/i.exec(this.text.slice(this.pos, this.pos + 40));
    const text = match && decodeEntity(match);
    if (!text) return this.take(1);
    this.add(text);
    this.pos += match[0].length;
  }

  /** Turn the nodes from `from` on into spans: match closing delimiters with the nearest opener of their kind. */
  emphasis(from, isOpen) {
    const nodes = this.nodes.splice(from).map((node) => node.bracket ?? node);
    return pair(nodes, isOpen);
  }
}

function pair(nodes, isOpen) {
  const out = [];
  const floors = new Map(); // kind of closer -> no opener for it stands below this place of `out`
  for (const node of nodes) {
    while (node.delimiter && node.canClose && node.count > 0) {
      const kind = `${node.delimiter}${node.canOpen}${node.length % 3}`;
      const floor = floors.get(kind) ?? 0;
      let at = out.length - 1;
      while (at >= floor && !opens(out[at], node)) at--;
      if (at < floor) {
        floors.set(kind, out.length);
        break;
      }
      const opener = out[at];
      const size = node.delimiter === "~" || (opener.count >= 2 && node.count >= 2) ? 2 : 1;
      opener.count -= size;
      node.count -= size;
      const kids = out.splice(at + 1);
      if (opener.count === 0) out.pop();
      out.push(span(node.delimiter, size, kids));
      for (const [name, place] of floors) if (place > out.length - 1) floors.set(name, out.length - 1);
    }
    if (!node.delimiter || node.count > 0) out.push(node);
  }
  return isOpen ? closeOpen(out) : out;
}

function opens(node, closer) {
  if (node.delimiter !== closer.delimiter || !node.canOpen || node.count === 0) return false;
  if (closer.delimiter === "~") return true;
  const isBoth = (node.canOpen && node.canClose) || (closer.canOpen && closer.canClose);
  return !(isBoth && (node.length + closer.length) % 3 === 0 && !(node.length % 3 === 0 && closer.length % 3 === 0));
}

function span(char, size, kids) {
  return { type: char === "~" ? "del" : size === 2 ? "strong" : "em", kids: merged(kids) };
}

/** Wrap what follows an unmatched opener, innermost first: the closer is still to come. */
function closeOpen(nodes) {
  for (let at = nodes.length - 1; at >= 0; at--) {
    const node = nodes[at];
    if (!node.delimiter || !node.canOpen || node.count === 0 || node.delimiter === "_") continue;
    const size = Math.min(node.count, 2);
    if (at === nodes.length - 1 || node.count > 3) continue;
    node.count -= size;
    nodes.splice(at + 1, nodes.length, span(node.delimiter, size, nodes.slice(at + 1)));
    if (node.count > 0) at++;
  }
  return nodes;
}

/** Join neighbouring strings, write unmatched delimiters as text, and flatten what is nested past reason. */
function merged(nodes) {
  const found = [];
  for (const node of nodes) {
    const text = typeof node === "string" ? node : node.delimiter ? node.delimiter.repeat(node.count) : null;
    if (text === null) {
      node.depth = 1 + (node.kids ?? []).reduce((most, kid) => Math.max(most, kid.depth ?? 0), 0);
      found.push(node.depth > MAX_DEPTH ? textOf([node]) : node);
    } else if (text && typeof found.at(-1) === "string") found[found.length - 1] += text;
    else if (text) found.push(text);
  }
  return found;
}

/** The plain text of spans: what a reader hears and what an image's description is. */
export function textOf(spans) {
  return spans
    .map((node) => (typeof node === "string" ? node : node.type === "break" ? "\n" : (node.text ?? textOf(node.kids ?? []))))
    .join("");
}

/** Read `(address "title")` at `at`; null where the text is none. */
function inlineTarget(text, at) {
  const rest = text.slice(at, at + 4000);
  const head = /^\([ \t]*\n?[ \t]*/.exec(rest)[0];
  let href = "";
  let end = head.length;
  const angled = /^<((?:[^<>\n\\]|\\.)*)>/.exec(rest.slice(end));
  if (angled) (([, href] = angled), (end += angled[0].length));
  else {
    let depth = 0;
    for (; end < rest.length; end++) {
      const char = rest[end];
      if (char === "\\" && /[!-/:-@[-`{-~]/.test(rest[end + 1] ?? "")) end++;
      else if (char === "(" && ++depth > 32) return null;
      else if (char === ")" && depth-- === 0) break;
      else if (/[\u0000-\u0020\u007f]/.test(char)) break;
    }
    href = rest.slice(head.length, end);
    if (href[0] === "<" || depth > 0) return null;
  }
  const title = /^[ \t\n]+("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\))/s.exec(rest.slice(end));
  if (title) end += title[0].length;
  const tail = /^[ \t]*\n?[ \t]*\)/.exec(rest.slice(end));
  if (!tail || title?.[1].includes("\n\n")) return null;
  return { href: unescape(href), title: unescape(title?.[1].slice(1, -1) ?? ""), end: at + end + tail[0].length };
}

function unescape(text) {
  return text
    .replace(/\\([!-/:-@[-`{-~])/g, "$1")
    .replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z][a-z0-9]{1,31}));/gi, (...match) => decodeEntity(match) ?? match[0]);
}

// The named characters that models write; others stay as they are written.
const NAMED = {
  ...{ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "\u00a9", reg: "\u00ae", trade: "\u2122" },
  ...{ hellip: "\u2026", mdash: "\u2014", ndash: "\u2013", lsquo: "\u2018", rsquo: "\u2019", ldquo: "\u201c", rdquo: "\u201d" },
  ...{ times: "\u00d7", divide: "\u00f7", plusmn: "\u00b1", deg: "\u00b0", micro: "\u00b5", middot: "\u00b7", bull: "\u2022" },
  ...{ larr: "\u2190", rarr: "\u2192", uarr: "\u2191", darr: "\u2193", harr: "\u2194", le: "\u2264", ge: "\u2265", ne: "\u2260" },
  ...{ infin: "\u221e", asymp: "\u2248", euro: "\u20ac", pound: "\u00a3", yen: "\u00a5", cent: "\u00a2", sect: "\u00a7" },
};

function decodeEntity([, decimal, hex, name]) {
  if (name) return Object.hasOwn(NAMED, name) ? NAMED[name] : null;
  const code = decimal ? Number(decimal) : parseInt(hex, 16);
  const isCharacter = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isCharacter ? String.fromCodePoint(code) : "\ufffd";
}

function lastChar(text, end) {
  const code = text.charCodeAt(end - 1);
  return code >= 0xdc00 && code <= 0xdfff ? text.slice(end - 2, end) : text[end - 1];
}

function firstChar(text, at) {
  return at < text.length ? String.fromCodePoint(text.codePointAt(at)) : undefined;
}

function count(text, char) {
  return text.split(char).length - 1;
}
