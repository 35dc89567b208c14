// Runs the chat page's modules under node for test_page_*.py: one JSON call a line in, one JSON answer a line out.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const load = (name) => import(pathToFileURL(`${folder}/${name}.js`));
const [blocks, inline, markdown, links, highlight, sse, api, conversation, tex] = await Promise.all(
  ["blocks", "inline", "markdown", "links", "highlight", "sse", "api", "conversation", "tex"].map(load),
);

// --- the tree as HTML, so that it can be compared with another implementation ------------------------------------

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

function spanHtml(span) {
  if (typeof span === "string") return escaped(span);
  const inner = () => span.kids.map(spanHtml).join("");
  const title = span.title ? ` title="${escaped(span.title)}"` : "";
  if (span.type === "break") return "<br>\n";
  if (span.type === "code") return `<code>${escaped(span.text)}</code>`;
  if (span.type === "link") return `<a href="${escaped(span.href)}"${title}>${inner()}</a>`;
  if (span.type === "image") return `<img src="${escaped(span.href)}" alt="${escaped(inline.textOf(span.kids))}"${title}>`;
  if (span.type === "math") return `<math>${escaped(span.text)}</math>`;
  return `<${span.type}>${inner()}</${span.type}>`;
}

function html(text) {
  const { blocks: found, definitions } = blocks.parseBlocks(text);
  const spans = (raw) => inline.parseInline(raw, definitions).map(spanHtml).join("");
  const all = (list, isTight) => list.map((block) => one(block, isTight)).join("");
  const one = (block, isTight) => {
    if (block.type === "paragraph") return block.isEmpty ? "" : isTight ? `${spans(block.text)}\n` : `<p>${spans(block.text)}</p>\n`;
    if (block.type === "heading") return `<h${block.level}>${spans(block.text)}</h${block.level}>\n`;
    if (block.type === "rule") return "<hr>\n";
    if (block.type === "quote") return `<blockquote>\n${all(block.blocks)}</blockquote>\n`;
    if (block.type === "code") return `<pre><code>${escaped(block.lines.map((line) => `${line}\n`).join(""))}</code></pre>\n`;
    if (block.type === "math") return `<math>${escaped(block.lines.join("\n").trim())}</math>\n`;
    if (block.type === "table") return tableHtml(block, spans);
    const tag = block.isOrdered ? "ol" : "ul";
    const start = block.isOrdered && block.first !== 1 ? ` start="${block.first}"` : "";
    return `<${tag}${start}>\n${block.blocks.map((item) => `<li>${all(item.blocks, block.isTight)}</li>\n`).join("")}</${tag}>\n`;
  };
  return all(found, false);
}

function tableHtml(block, spans) {
  const row = (tag, texts) => `<tr>${block.align.map((_, at) => `<${tag}>${spans(texts[at] ?? "")}</${tag}>`).join("")}</tr>`;
  const body = block.rows.length ? `<tbody>${block.rows.map((texts) => row("td", texts)).join("")}</tbody>` : "";
  return `<table><thead>${row("th", block.head)}</thead>${body}</table>\n`;
}

function texHtml(node) {
  if (node === null || typeof node === "string") return node;
  return `<${node.tag}>${node.kids.map(texHtml).join("")}</${node.tag}>`;
}

// --- calls ----------------------------------------------------------------------------------------------------------

function streamed(text, cuts) {
  const view = new markdown.MarkdownText();
  let [settled, known] = [[], ""];
  for (const cut of cuts) {
    const nodes = view.update(text.slice(0, cut), false);
    // A definition of a reference makes links in what is settled: only texts without a new one keep the same objects.
    const changed = view.known === known ? settled.findIndex((node, at) => nodes[at] !== node) : -1;
    if (changed >= 0) throw new Error(`block ${changed} was settled and changed at ${cut}`);
    [settled, known] = [nodes.slice(0, view.settledCount), view.known];
  }
  return view.update(text, true);
}

async function sseEvents(bytes, cuts) {
  const all = Uint8Array.from(bytes);
  const edges = [0, ...cuts, all.length];
  async function* chunks() {
    for (let at = 1; at < edges.length; at++) yield all.slice(edges[at - 1], edges[at]);
  }
  const found = [];
  for await (const data of sse.events(chunks())) found.push(data);
  return found;
}

function coloured(language, text) {
  const colour = highlight.highlighter(language);
  let state = null;
  return text.split("\n").map((line) => {
    const [tokens, next] = colour(line, state);
    state = next;
    return tokens;
  });
}

async function request(tree, last, system) {
  const message = tree.messages.find((one) => one.id === last);
  return conversation.requestMessages({ ...tree, system }, message, async (id) => `data:image/png;base64,${id}`);
}

function versionsOf(steps) {
  const tree = conversation.newConversation();
  const made = [];
  for (const [verb, of, text] of steps) {
    const at = of === null ? null : made[of];
    if (verb === "choose") conversation.choose(tree, at);
    else made.push(conversation.addMessage(tree, at?.id ?? null, { role: verb, text }));
  }
  return { texts: conversation.path(tree).map((one) => one.text), title: tree.title };
}

const calls = {
  html,
  nodes: markdown.markdownNodes,
  streamed,
  open: (text) => new markdown.MarkdownText().update(text, false),
  tex: (text, isBlock) => texHtml(tex.texNode(text, isBlock)?.kids[0].kids[0] ?? null),
  spoken: (text) => markdown.markdownNodes(text).map(markdown.spokenText),
  safe: links.safeAddress,
  plain: links.plainText,
  coloured,
  sse: sseEvents,
  retry: api.retryAfter,
  title: conversation.titleOf,
  request,
  versions: versionsOf,
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...values] = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await calls[name](...values)) ?? null };
  } catch (error) {
    answer = { error: String(error.stack) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
