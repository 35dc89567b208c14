// Markdown of an answer that grows -> a tree that patch.js keeps on the page.
//
// A tree node is a string or {tag, attrs, kids}, or {code, language, text} for a block of code. Plain data: tested
// under node, and no way for a model's text to become markup, since only patch.js makes elements, by name, from here.
//
// While an answer streams, blocks that no later text can change are settled: parsed once and never looked at again.
// What may still change begins at the last block that was open before the last line; that much is parsed anew.

import { parseBlocks } from "./blocks.js";
import { parseInline, textOf } from "./inline.js";
import { safeAddress, splitReordering } from "./links.js";
import { texNode } from "./tex.js";

/** The blocks of one answer. `update` with its text so far gives the nodes; settled ones are the same objects again. */
export class MarkdownText {
  constructor() {
    this.offset = 0; // where the text begins that is not settled
    this.blocks = []; // settled
    this.nodes = []; // theirs
    this.definitions = new Map(); // of settled blocks
    this.known = ""; // names of all definitions the nodes were made with
  }

  /** Return the nodes of `text`, which begins with the text of the last call. isDone: nothing follows. */
  update(text, isDone = true) {
    const clean = text.replace(/\r\n?/g, "\n").replaceAll("\0", "\ufffd");
    const open = (isDone ? clean : withoutBeginnings(clean)).slice(this.offset);
    const { blocks, definitions } = parseBlocks(open);
    const all = new Map([...definitions, ...this.definitions]);
    const known = JSON.stringify([...all]);
    if (known !== this.known) this.nodes = this.blocks.map((block) => blockNode(block, all));
    this.known = known;

    const lines = open.split("\n");
    let settled = blocks.findLastIndex((block) => block.start < lines.length - 1);
    while (settled > 0 && blocks[settled].isJoined) settled--;
    if (settled < 0 || isDone) settled = 0;
    for (const block of blocks.slice(0, settled)) {
      this.blocks.push(block);
      this.nodes.push(blockNode(block, all));
    }
    if (settled > 0) {
      const first = blocks[settled].start;
      this.offset += lines.slice(0, first).join("\n").length + 1;
      for (const [name, definition] of definitions) {
        if (definition.line < first && !this.definitions.has(name)) this.definitions.set(name, { ...definition, line: 0 });
      }
      this.known = JSON.stringify([...new Map([...definitions, ...this.definitions])]);
    }
    const tail = blocks.slice(settled);
    const nodes = tail.map((block, index) => blockNode(block, all, !isDone && index === tail.length - 1));
    return [...this.nodes, ...nodes].filter(Boolean);
  }

  /** How many nodes, from the first, will not change any more while text is only added. */
  get settledCount() {
    return this.nodes.filter(Boolean).length;
  }
}

/** Return the nodes of a whole text. */
export function markdownNodes(text) {
  return new MarkdownText().update(text, true);
}

/** The words of nodes, for those who listen. */
export function spokenText(node) {
  if (typeof node === "string") return node;
  if (node.tag === "math") return node.kids[0].kids[1].kids[0];
  if (node.code) return `Code${node.language ? ` in ${node.language}` : ""}, ${node.text.split("\n").length} lines.`;
  const inner = (node.kids ?? []).map(spokenText).join(node.tag === "tr" ? ", " : "");
  return /^(p|li|tr|h\d|blockquote|br)$/.test(node.tag) ? `${inner}\n` : inner;
}

/**
 * Drop the end of a text that would be shown as one thing and become another with the next characters.
 *
 * "-" below a line makes it a heading until it becomes "- item"; "|a|b|" is a paragraph until the line below it makes it
 * a table. They are shown when it is clear what they are.
 */
function withoutBeginnings(text) {
  const lines = text.split("\n");
  let keep = lines.length;
  const last = lines[keep - 1];
  if (/^[ \t>]*(?:[-=_*#~`|:+ \t]*|\d{1,9}[.)]?)[ \t]*$/.test(last)) keep--;
  const bar = /^[ \t>]*\|/;
  if (keep > 0 && bar.test(lines[keep - 1]) && !bar.test(lines[keep - 2] ?? "")) keep--;
  if (keep === lines.length) return text;
  return keep === 0 ? "" : lines.slice(0, keep).join("\n") + "\n";
}

// --- blocks -----------------------------------------------------------------------------------------------------

/** The node of a block, or null where it shows nothing. isOpen: its text goes on. */
function blockNode(block, definitions, isOpen = false) {
  if (block.type === "paragraph") {
    return block.text ? { tag: "p", attrs: AUTO, kids: spans(block.text, definitions, isOpen) } : null;
  }
  if (block.type === "heading") return heading(block, definitions, isOpen);
  if (block.type === "code") return codeNode(block);
  if (block.type === "quote") return { tag: "blockquote", attrs: AUTO, kids: blockNodes(block.blocks, definitions, isOpen) };
  if (block.type === "list") return listNode(block, definitions, isOpen);
  if (block.type === "table") return tableNode(block, definitions, isOpen);
  if (block.type === "math") return mathBlock(block, definitions, isOpen);
  return { tag: "hr", attrs: {}, kids: [] };
}

/** A formula over lines; one that never ended is text. */
function mathBlock(block, definitions, isOpen) {
  const text = block.lines.join("\n").trim();
  if (block.isClosed) return { tag: "p", attrs: { class: "formula" }, kids: [mathNode(text, true)] };
  if (isOpen) return { tag: "p", attrs: { class: "formula" }, kids: [{ tag: "code", attrs: MATH, kids: textNodes(text, true) }] };
  return { tag: "p", attrs: AUTO, kids: textNodes(`${block.opening}${block.lines.join("\n")}`, false) };
}

const MATH = Object.freeze({ dir: "ltr", class: "math" });

function mathNode(text, isBlock) {
  return texNode(text, isBlock) ?? { tag: "code", attrs: MATH, kids: textNodes(text, true) };
}

const AUTO = Object.freeze({ dir: "auto" });

function blockNodes(blocks, definitions, isOpen) {
  return blocks.map((block, at) => blockNode(block, definitions, isOpen && at === blocks.length - 1)).filter(Boolean);
}

function heading(block, definitions, isOpen) {
  // The page's own headings come first: a message is an h2, so the largest heading inside one is an h3.
  const attrs = { dir: "auto", class: `heading-${block.level}` };
  return { tag: `h${Math.min(6, block.level + 2)}`, attrs, kids: spans(block.text, definitions, isOpen) };
}

function codeNode(block) {
  const language = (block.info.match(/^[^\s{,]+/) ?? [""])[0].toLowerCase();
  return { code: true, language, text: block.lines.join("\n") };
}

function listNode(block, definitions, isOpen) {
  const items = block.blocks.map((item, at) => itemNode(item, block, definitions, isOpen && at === block.blocks.length - 1));
  const attrs = block.isOrdered && block.first !== 1 ? { start: String(block.first) } : {};
  return { tag: block.isOrdered ? "ol" : "ul", attrs: { ...attrs, class: block.isTight ? "tight" : "loose" }, kids: items };
}

function itemNode(item, list, definitions, isOpen) {
  const [first, ...others] = item.blocks;
  const task = first?.type === "paragraph" && /^\[([ xX])\][ \t]+(?=\S)/.exec(first.text);
  const blocks = task ? [{ ...first, text: first.text.slice(task[0].length) }, ...others] : item.blocks;
  const kids = [];
  if (task) {
    const isDone = task[1] !== " ";
    kids.push({ tag: "span", attrs: { class: "box", role: "img", "aria-label": isDone ? "done" : "to do" }, kids: [] });
  }
  blocks.forEach((block, at) => {
    const isLast = isOpen && at === blocks.length - 1;
    if (block.type === "paragraph" && list.isTight) kids.push(...spans(block.text, definitions, isLast));
    else kids.push(blockNode(block, definitions, isLast));
  });
  const name = task ? (task[1] === " " ? "task" : "task done") : "";
  return { tag: "li", attrs: { dir: "auto", ...(name && { class: name }) }, kids: kids.filter(Boolean) };
}

function tableNode(block, definitions, isOpen) {
  const cell = (tag, text, column, isLast) => {
    const attrs = { dir: "auto", ...(block.align[column] && { class: block.align[column] }) };
    if (tag === "th") attrs.scope = "col";
    return { tag, attrs, kids: spans(text, definitions, isLast) };
  };
  const row = (tag, texts, isLast) => {
    const full = block.align.map((_, column) => texts[column] ?? "");
    return { tag: "tr", attrs: {}, kids: full.map((text, at) => cell(tag, text, at, isLast && at === texts.length - 1)) };
  };
  const head = { tag: "thead", attrs: {}, kids: [row("th", block.head, false)] };
  const rows = block.rows.map((texts, at) => row("td", texts, isOpen && at === block.rows.length - 1));
  const table = { tag: "table", attrs: {}, kids: [head, { tag: "tbody", attrs: {}, kids: rows }] };
  // A wide table scrolls by itself; a keyboard can reach it.
  return { tag: "div", attrs: { class: "table", role: "region", "aria-label": "Table", tabindex: "0" }, kids: [table] };
}

// --- spans ------------------------------------------------------------------------------------------------------

function spans(text, definitions, isOpen) {
  return spanNodes(parseInline(text, definitions, isOpen));
}

function spanNodes(parsed) {
  return parsed.flatMap((span) => (typeof span === "string" ? textNodes(span, false) : [spanNode(span)]));
}

function spanNode(span) {
  if (span.type === "break") return { tag: "br", attrs: {}, kids: [] };
  if (span.type === "code") return { tag: "code", attrs: { dir: "ltr" }, kids: textNodes(span.text, true) };
  if (span.type === "math") return mathNode(span.text, span.isBlock);
  if (span.type === "link") return linkNode(span.href, span.title, spanNodes(span.kids));
  // A picture at an address that a model chose would tell that address what was said here: shown as a link instead.
  if (span.type === "image") return linkNode(span.href, span.title, textNodes(`Image: ${textOf(span.kids) || span.href}`, false));
  return { tag: span.type, attrs: {}, kids: spanNodes(span.kids) };
}

function linkNode(href, title, kids) {
  const address = safeAddress(href);
  if (!address) {
    const why = href ? "Not a link: only http, https and mailto addresses are followed." : "";
    return { tag: "span", attrs: { class: "refused", ...(why && { title: why }) }, kids };
  }
  const attrs = { href: address, title: title ? `${title} (${address})` : address, target: "_blank" };
  return { tag: "a", attrs: { ...attrs, rel: "noopener noreferrer nofollow", dir: "auto" }, kids };
}

/** A text as nodes: characters that reorder what follows are shown by number and take no effect. */
export function textNodes(text, isCode) {
  return splitReordering(text, isCode).map((part) =>
    part.mark
      ? { tag: "span", attrs: { class: "mark", "data-code": part.mark, title: `${part.mark} reorders text` }, kids: [] }
      : part.text,
  );
}
