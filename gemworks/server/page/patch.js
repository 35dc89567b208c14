// The tree of markdown.js -> elements, changed only where the tree changed.
//
// Text that grows is appended to its text node, so a selection, a scrolled table and the focus stay where they are.

import { CodeBlock } from "./codeblock.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";

/** Make `parent` show `nodes`; `before` is what it shows (the nodes of the last call). */
export function patch(parent, before, nodes) {
  const shared = Math.min(before.length, nodes.length);
  for (let at = 0; at < shared; at++) {
    if (before[at] !== nodes[at]) patchNode(parent, parent.childNodes[at], before[at], nodes[at]);
  }
  for (let at = before.length; at > nodes.length; at--) parent.childNodes[at - 1].remove();
  if (nodes.length > shared) parent.append(...nodes.slice(shared).map(create));
}

function patchNode(parent, element, before, node) {
  if (typeof before === "string" && typeof node === "string") {
    if (node === before) return;
    if (node.startsWith(before)) element.appendData(node.slice(before.length));
    else element.data = node;
  } else if (before.code && node.code && before.language === node.language) {
    node.block = before.block;
    if (before.text !== node.text) node.block.update(node.text);
  } else if (before.tag && before.tag === node.tag) {
    patchAttributes(element, before.attrs, node.attrs);
    patch(element, before.kids, node.kids);
  } else parent.replaceChild(create(node), element);
}

function patchAttributes(element, before, attrs) {
  if (before === attrs) return;
  for (const name of Object.keys(before)) if (!(name in attrs)) element.removeAttribute(name);
  for (const [name, value] of Object.entries(attrs)) if (before[name] !== value) element.setAttribute(name, value);
}

function create(node) {
  if (typeof node === "string") return document.createTextNode(node);
  if (node.code) {
    node.block = new CodeBlock(node.language, node.text);
    return node.block.element;
  }
  const element = node.isMath ? document.createElementNS(MATHML, node.tag) : document.createElement(node.tag);
  patchAttributes(element, {}, node.attrs);
  element.append(...node.kids.map(create));
  return element;
}
