// A conversation: a tree of messages, so that an edited question or another try at an answer loses nothing.
//
//     question 1 -- answer 1 -- question 2  -- answer 2
//                            \- question 2' -- answer 2'    <- head: the path from it to the root is what is shown
//
// Plain data, as it is stored and exported. Changed only by the functions here.

import { plainText } from "./links.js";

export const EMPTY_PARAMETERS = Object.freeze({ temperature: null, top_p: null, top_k: null, max_tokens: null, seed: null });

/** Return a new conversation without messages. */
export function newConversation({ system = "", parameters = {}, model = "" } = {}) {
  const now = Date.now();
  const common = { id: newId(), title: "", isNamed: false, created: now, updated: now, messages: [], head: null };
  return { ...common, system, parameters: { ...EMPTY_PARAMETERS, ...parameters }, model };
}

export function newId() {
  // randomUUID exists on https and localhost only.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Add a message below `parent` (an id, or null for a first one), make it the head and return it. */
export function addMessage(conversation, parent, fields) {
  const message = { id: newId(), parent, text: "", images: [], state: "done", time: Date.now(), ...fields };
  conversation.messages.push(message);
  conversation.head = message.id;
  conversation.updated = message.time;
  if (message.role === "user" && !conversation.isNamed && parent === null) conversation.title = titleOf(message.text);
  return message;
}

/** The messages that are shown, first to last. */
export function path(conversation) {
  const known = new Map(conversation.messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = known.get(conversation.head); at && found.length <= known.size; at = known.get(at.parent)) found.push(at);
  return found.reverse();
}

/** All versions of a message, itself among them, oldest first. */
export function versions(conversation, message) {
  return conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

/** Show this version: the head becomes the newest message below it. */
export function choose(conversation, message) {
  let at = message;
  for (let next = at; next; next = conversation.messages.filter((other) => other.parent === at.id).at(-1)) at = next;
  conversation.head = at.id;
}

/** What a message begins with, as a title of at most 60 characters. */
export function titleOf(text) {
  const line = plainText(text.slice(0, 400)).replace(/\s+/g, " ").replace(/^[#>*\-\s`]+/, "");
  if (line.length <= 60) return line || "Picture";
  const cut = line.slice(0, 60);
  return `${cut.slice(0, Math.max(30, cut.lastIndexOf(" ")))}\u2026`;
}

/** An answer that was being written when the page went away is not any more. */
export function settleInterrupted(conversation) {
  for (const message of conversation.messages) if (message.state === "streaming") message.state = "interrupted";
  return conversation;
}

/** Ids of all pictures of a conversation. */
export function imagesOf(conversation) {
  return [...new Set(conversation.messages.flatMap((message) => message.images.map((image) => image.id)))];
}

/**
 * Return the messages of an OpenAI request for everything up to and including `last`.
 *
 * dataUrl(id) gives a picture as a data URL. Answers of which nothing arrived are left out with their questions kept.
 */
export async function requestMessages(conversation, last, dataUrl) {
  const shown = path({ ...conversation, head: last.id });
  const found = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const message of shown) {
    if (message.role === "assistant" && !message.text) continue;
    if (!message.images.length) {
      const before = found.at(-1);
      // Two questions in a row (the answer between them never came) are one turn: templates want turns to alternate.
      if (before?.role === message.role && typeof before.content === "string") before.content += `\n\n${message.text}`;
      else found.push({ role: message.role, content: message.text });
      continue;
    }
    const parts = [];
    for (const image of message.images) {
      const url = await dataUrl(image.id);
      if (url) parts.push({ type: "image_url", image_url: { url } });
    }
    if (message.text) parts.push({ type: "text", text: message.text });
    found.push({ role: message.role, content: parts });
  }
  return found;
}
