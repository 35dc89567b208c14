// Which addresses of a model's answer may become links, and how characters that reorder text are shown.

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
// Controls, and white space that an URL parser drops: "java\nscript:" is "javascript:" to a browser.
const DROPPED = /[\u0000-\u0020\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;
// Embeddings and isolates are how Arabic and Hebrew texts keep their order; overrides only ever deceive.
const REORDERING = /[\u202a-\u202e\u2066-\u2069]/g;
const OVERRIDES = /[\u202d\u202e]/g;

/**
 * Return the address to follow, or null where it may not be one.
 *
 * Only http, https and mailto. An address without a scheme would lead into this server, so it is refused too: a
 * model has no business there. The browser's own parser decides what the scheme is.
 */
export function safeAddress(address) {
  try {
    const url = new URL(address.replace(DROPPED, ""));
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * Split a text at characters that reorder what follows: [{text}, {mark: "U+202E"}, {text} ...].
 *
 * In code every such character is a trap (what compiles is not what is read), in prose only the overrides are.
 */
export function splitReordering(text, isCode) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(isCode ? REORDERING : OVERRIDES)) {
    if (match.index > from) parts.push({ text: text.slice(from, match.index) });
    parts.push({ mark: "U+" + match[0].charCodeAt(0).toString(16).toUpperCase() });
    from = match.index + 1;
  }
  if (from < text.length) parts.push({ text: text.slice(from) });
  return parts;
}

/** The text without characters that reorder or hide: for titles and names of files. */
export function plainText(text) {
  return text.replace(REORDERING, "").replace(/[\u0000-\u001f\u007f-\u009f]+/g, " ").trim();
}
