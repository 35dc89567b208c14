// Markdown, first pass: lines -> a tree of blocks (CommonMark 0.31 without raw HTML, with GFM tables and task lists).
//
// The algorithm is the one of the CommonMark specification's appendix: a stack of open blocks; each line first
// continues what it can of them, then opens new ones, then adds its text to the deepest. Text inside blocks stays
// raw here (inline.js reads it). Positions are line numbers, which is what decides whether a list is loose.
//
// Nothing here is a DOM node, so that it runs under node in tests.

// Containers deeper than this are taken as text: a page of ">>>>>" must not exhaust the stack of those that walk it.
const MAX_DEPTH = 40;
const LEAVES = new Set(["code", "heading", "rule", "math"]);

/** Return {blocks, definitions} of a text; blocks carry `start` and `end`, zero-based lines, inclusive. */
export function parseBlocks(text) {
  const parser = new Parser();
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  lines.forEach((line, number) => parser.take(line, number));
  parser.closeAll(lines.length - 1);
  return { blocks: parser.root.blocks, definitions: parser.definitions };
}

class Parser {
  constructor() {
    this.root = { type: "document", blocks: [], start: 0, isOpen: true };
    this.definitions = new Map();
  }

  /** Work one line into the tree. */
  take(text, number) {
    this.text = text;
    this.number = number;
    this.pos = 0;
    this.column = 0;
    this.partial = 0; // columns left of a tab that was taken in part
    this.path = [this.root];
    const isDone = this.continueOpen();
    if (isDone) return;
    this.openNew();
    this.addText();
  }

  // --- the line -----------------------------------------------------------------------------------------------

  /** Measure the white space ahead: this.indent columns, this.next the first other character, this.isBlank. */
  look() {
    let columns = this.partial;
    let at = this.pos + (this.partial ? 1 : 0);
    let column = this.column + this.partial;
    for (; at < this.text.length; at++) {
      const char = this.text[at];
      if (char === " ") (columns++, column++);
      else if (char === "\t") {
        const width = 4 - (column % 4);
        columns += width;
        column += width;
      } else break;
    }
    this.indent = columns;
    this.next = at;
    this.isBlank = at >= this.text.length;
  }

  /** Take `count` columns of white space. */
  takeColumns(count) {
    while (count > 0 && this.pos < this.text.length) {
      const char = this.text[this.pos];
      if (char === "\t") {
        const width = this.partial || 4 - (this.column % 4);
        const taken = Math.min(width, count);
        this.column += taken;
        count -= taken;
        this.partial = width - taken;
        if (this.partial === 0) this.pos++;
      } else if (char === " ") {
        this.pos++;
        this.column++;
        count--;
      } else return;
    }
  }

  /** Take everything up to the first other character, and `count` characters more. */
  takeMarker(count) {
    this.column += this.indent + count;
    this.pos = this.next + count;
    this.partial = 0;
  }

  rest() {
    return " ".repeat(this.partial) + this.text.slice(this.pos + (this.partial ? 1 : 0));
  }

  get tip() {
    return this.path.at(-1);
  }

  // --- step 1: what stays open --------------------------------------------------------------------------------

  /** Follow open blocks as far as this line continues them; true where the line is used up (a closing fence). */
  continueOpen() {
    for (;;) {
      const block = this.tip.blocks?.at(-1);
      if (!block?.isOpen) break;
      this.look();
      const goes = this.continues(block);
      if (goes === "closed") {
        this.close(block, this.number);
        return true;
      }
      if (!goes) break;
      this.path.push(block);
    }
    this.unmatched = this.tip.blocks?.at(-1)?.isOpen ? this.tip.blocks.at(-1) : null;
    return false;
  }

  continues(block) {
    if (block.type === "list") return true;
    if (block.type === "quote") return this.takeQuoteMark();
    if (block.type === "paragraph" || block.type === "table") return !this.isBlank;
    if (block.type === "math") return this.continuesMath(block);
    if (block.type === "code") return block.fence ? this.continuesFence(block) : this.continuesIndented();
    if (block.type !== "item") return false;
    if (this.isBlank) {
      if (block.blocks.length === 0) return false;
      this.takeMarker(0);
      return true;
    }
    if (this.indent < block.offset) return false;
    this.takeColumns(block.offset);
    return true;
  }

  takeQuoteMark() {
    if (this.indent > 3 || this.text[this.next] !== ">") return false;
    this.takeMarker(1);
    if (this.text[this.pos] === " " || this.text[this.pos] === "\t") this.takeColumns(1);
    return true;
  }

  continuesFence(block) {
    const close = this.indent <= 3 && /^(`{3,}|~{3,})[ \t]*$/.exec(this.text.slice(this.next));
    if (close && close[1][0] === block.fence && close[1].length >= block.length) {
      block.isClosed = true;
      return "closed";
    }
    this.takeColumns(Math.min(this.indent, block.offset));
    return true;
  }

  /** A formula ends with the line that ends in its mark; a blank line ends it too, and it was none then. */
  continuesMath(block) {
    if (this.isBlank) return false;
    const text = this.text.slice(this.next).trimEnd();
    if (!text.endsWith(block.mark)) return true;
    block.lines.push(text.slice(0, -block.mark.length));
    block.isClosed = true;
    return "closed";
  }

  continuesIndented() {
    if (this.indent >= 4) this.takeColumns(4);
    else if (this.isBlank) this.takeMarker(0);
    else return false;
    return true;
  }

  // --- step 2: what begins ------------------------------------------------------------------------------------

  openNew() {
    while (!LEAVES.has(this.tip.type)) {
      this.look();
      if (!this.open()) break;
    }
  }

  /** Open one block at the cursor; false where none begins here. */
  open() {
    if (this.isBlank) return false;
    const rest = this.text.slice(this.next);
    if (this.indent > 3) {
      // Indented code never interrupts a paragraph, be it a lazily continued one.
      if (this.isInParagraph() || this.tip.type === "table") return false;
      this.takeColumns(4);
      this.push({ type: "code", info: "", lines: [] });
      return true;
    }
    return (
      this.openQuote(rest) ||
      this.openHeading(rest) ||
      this.openFence(rest) ||
      this.openMath(rest) ||
      this.openSetext(rest) ||
      this.openTable(rest) ||
      this.openRule(rest) ||
      this.openItem(rest)
    );
  }

  openQuote(rest) {
    if (rest[0] !== ">" || this.path.length > MAX_DEPTH) return false;
    this.takeQuoteMark();
    this.push({ type: "quote", blocks: [] });
    return true;
  }

  openHeading(rest) {
    const match = /^(#{1,6})(?=[ \t]|$)/.exec(rest);
    if (!match) return false;
    const text = rest.slice(match[1].length).trim();
    const bare = text.replace(/(^|[ \t])#+$/, "").trim();
    this.push({ type: "heading", level: match[1].length, text: bare });
    this.pos = this.text.length;
    return true;
  }

  openFence(rest) {
    const match = /^(`{3,})([^`]*)$|^(~{3,})(.*)$/.exec(rest);
    if (!match) return false;
    const mark = match[1] ?? match[3];
    const info = (match[2] ?? match[4]).trim();
    const offset = this.indent;
    this.push({ type: "code", fence: mark[0], length: mark.length, offset, info, lines: [], isClosed: false });
    this.pos = this.text.length;
    this.isUsed = true;
    return true;
  }

  /** $$ or \[ that does not end on its line: a formula over lines. */
  openMath(rest) {
    const match = /^(\$\$|\\\[)(.*)$/.exec(rest);
    const mark = match && (match[1] === "$$" ? "$$" : "\\]");
    if (!match || match[2].includes(mark)) return false;
    this.push({ type: "math", opening: match[1], mark, lines: [match[2]], isClosed: false });
    this.pos = this.text.length;
    this.isUsed = true;
    return true;
  }

  openSetext(rest) {
    const paragraph = this.tip;
    const match = paragraph.type === "paragraph" && /^(=+|-+)[ \t]*$/.exec(rest);
    if (!match) return false;
    const text = this.takeDefinitions(paragraph);
    if (!text) return false;
    const parent = this.path.at(-2);
    const heading = { type: "heading", level: match[1][0] === "=" ? 1 : 2, text, start: paragraph.start };
    parent.blocks[parent.blocks.length - 1] = { ...heading, isOpen: false, end: this.number };
    this.path[this.path.length - 1] = parent.blocks.at(-1);
    this.pos = this.text.length;
    return true;
  }

  /** The line of dashes below a row makes that row a table's head; rows before it stay a paragraph. */
  openTable(rest) {
    const paragraph = this.tip;
    if (paragraph.type !== "paragraph" || !/^[|:-][ \t|:-]*$/.test(rest) || !/[|:]/.test(rest)) return false;
    const align = cells(rest).map(alignment);
    const head = cells(paragraph.lines.at(-1));
    if (align.includes(undefined) || head.length !== align.length) return false;
    paragraph.lines.pop();
    const parent = this.path.at(-2);
    // Alone, the head might be read otherwise ("14. a | b"): such a table is only ever read together with the lines before.
    const isJoined = paragraph.lines.length > 0;
    if (isJoined) this.close(paragraph, this.number - 2);
    else parent.blocks.pop();
    this.path.pop();
    this.unmatched = null;
    this.push({ type: "table", align, head, rows: [], isJoined });
    this.tip.start = this.number - 1;
    this.pos = this.text.length;
    this.isUsed = true;
    return true;
  }

  openRule(rest) {
    if (!/^(?:(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|(?:-[ \t]*){3,})$/.test(rest)) return false;
    this.push({ type: "rule" });
    this.pos = this.text.length;
    return true;
  }

  openItem(rest) {
    const match = /^(?:([*+-])|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(rest);
    if (!match || this.path.length > MAX_DEPTH) return false;
    const isOrdered = match[2] !== undefined;
    const mark = isOrdered ? match[3] : match[1];
    const after = rest.slice(match[0].length);
    if (this.tip.type === "paragraph" && (!after.trim() || (isOrdered && Number(match[2]) !== 1))) return false;
    const before = this.indent;
    this.takeMarker(match[0].length);
    this.look();
    const gap = this.isBlank || this.indent > 4 ? 1 : this.indent;
    if (this.isBlank) this.takeMarker(0);
    else this.takeColumns(gap);
    const offset = before + match[0].length + gap;
    if (this.tip.type !== "list" || this.tip.isOrdered !== isOrdered || this.tip.mark !== mark) {
      this.push({ type: "list", isOrdered, mark, first: Number(match[2] ?? 0), isTight: true, blocks: [] });
    }
    this.push({ type: "item", offset, blocks: [] });
    return true;
  }

  /** Whether the text at the cursor could go on with a paragraph, matched or lazily. */
  isInParagraph() {
    return this.tip.type === "paragraph" || (this.unmatched && deepest(this.unmatched).type === "paragraph");
  }

  push(block) {
    if (this.unmatched) this.closeUnmatched();
    while (!canHold(this.tip, block)) {
      this.close(this.tip, this.number - 1);
      this.path.pop();
    }
    Object.assign(block, { start: this.number, isOpen: true });
    this.tip.blocks.push(block);
    this.path.push(block);
  }

  closeUnmatched() {
    this.close(this.unmatched, this.number - 1);
    this.unmatched = null;
  }

  // --- step 3: what is left of the line -----------------------------------------------------------------------

  addText() {
    const isUsed = this.isUsed;
    this.isUsed = false;
    this.look();
    const block = this.tip;
    if (this.unmatched && !this.isBlank) {
      const lazy = deepest(this.unmatched);
      if (lazy.type === "paragraph") {
        lazy.lines.push(this.text.slice(this.next));
        return;
      }
    }
    if (this.unmatched) this.closeUnmatched();
    if (isUsed) return;
    if (block.type === "code") block.lines.push(this.rest());
    else if (block.type === "math") block.lines.push(this.text.slice(this.next));
    else if (block.type === "table") block.rows.push(cells(this.text.slice(this.next)).slice(0, block.align.length));
    else if (block.type === "paragraph") block.lines.push(this.text.slice(this.next));
    else if (block.blocks && !this.isBlank) {
      this.push({ type: "paragraph", lines: [] });
      this.tip.lines.push(this.text.slice(this.next));
    }
  }

  // --- closing ------------------------------------------------------------------------------------------------

  closeAll(last) {
    this.close(this.root, last);
  }

  /** Close a block and what is open in it; `line` is the last line that can belong to it. */
  close(block, line) {
    if (!block.isOpen) return;
    block.isOpen = false;
    block.end = line;
    const child = block.blocks?.at(-1);
    if (child?.isOpen) this.close(child, line);
    if (block.type === "paragraph") this.closeParagraph(block);
    if (block.type === "code" && !block.fence) {
      while (block.lines.length && !block.lines.at(-1).trim()) block.lines.pop();
      block.end = block.start + block.lines.length - 1;
    }
    if (block.type === "item") block.end = block.blocks.at(-1)?.end ?? block.start;
    if (block.type === "list") {
      block.end = block.blocks.at(-1).end;
      block.isTight = isTight(block);
    }
  }

  closeParagraph(block) {
    block.text = this.takeDefinitions(block);
    block.isEmpty = !block.text;
  }

  /** Return a paragraph's text without the link reference definitions at its front; they are kept with its line. */
  takeDefinitions(block) {
    let text = block.lines.join("\n").trim();
    const shape =
      /^\[((?:[^\\[\]]|\\.)+)\]:[ \t]*\n?[ \t]*(?:<((?:[^<>\n\\]|\\.)*)>|([^\s<]\S*))(?:(?:[ \t]+|[ \t]*\n[ \t]*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\)))?[ \t]*(?:\n|$)/;
    const untitled = /^\[((?:[^\\[\]]|\\.)+)\]:[ \t]*\n?[ \t]*(?:<((?:[^<>\n\\]|\\.)*)>|([^\s<]\S*))[ \t]*(?:\n|$)/;
    for (;;) {
      const match = text[0] === "[" && (shape.exec(text) ?? untitled.exec(text));
      if (!match || !match[1].trim()) return text;
      const name = labelOf(match[1]);
      const title = match[4]?.slice(1, -1) ?? "";
      if (!this.definitions.has(name)) this.definitions.set(name, { href: match[2] ?? match[3], title, line: block.start });
      text = text.slice(match[0].length).trimStart();
    }
  }
}

/** The form in which labels of references are compared: case and white space do not matter. */
export function labelOf(text) {
  return text.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase();
}

function canHold(parent, block) {
  if (parent.type === "list") return block.type === "item";
  return Boolean(parent.blocks) && block.type !== "item";
}

function deepest(block) {
  let at = block;
  while (at.blocks?.at(-1)?.isOpen) at = at.blocks.at(-1);
  return at;
}

/** A list is tight where no blank line stands between its items, nor between the blocks of one of them. */
function isTight(list) {
  const follows = (block, index, all) => index === 0 || all[index - 1].end === block.start - 1;
  return list.blocks.every(follows) && list.blocks.every((item) => item.blocks.every(follows));
}

function alignment(cell) {
  const match = /^(:?)-+(:?)$/.exec(cell);
  if (!match) return undefined;
  if (match[1] && match[2]) return "center";
  return match[2] ? "right" : match[1] ? "left" : "";
}

/** The cells of a table row, trimmed; a backslash protects a bar. */
export function cells(row) {
  const found = [""];
  const text = row.trim();
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\" && text[at + 1] === "|") (found.push(found.pop() + "|"), at++);
    else if (text[at] === "|") found.push("");
    else found.push(found.pop() + text[at]);
  }
  if (text.startsWith("|")) found.shift();
  if (text.endsWith("|") && !text.endsWith("\\|")) found.pop();
  return found.map((cell) => cell.trim());
}
