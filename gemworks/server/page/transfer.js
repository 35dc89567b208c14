// Conversations as a JSON file, out and in.
//
//     {"format": "gemworks-conversations", "version": 1, "conversations": [{..., "pictures": {id: data URL}}]}
//
// Keys are never in it. What comes in is somebody's file: every field is checked and copied, unknown ones are dropped,
// ids are made anew, so that an import never writes over a conversation.

import { EMPTY_PARAMETERS, imagesOf, newConversation, newId } from "./conversation.js";
import { blobOf, dataUrl } from "./images.js";
import { plainText } from "./links.js";

const FORMAT = "gemworks-conversations";
const MAX_BYTES = 200_000_000;

/** Return the text of a file with these conversations and their pictures. */
export async function exportText(conversations, store) {
  const found = [];
  for (const conversation of conversations) {
    const pictures = {};
    for (const id of imagesOf(conversation)) {
      const image = await store.image(id);
      if (image) pictures[id] = await dataUrl(image.blob);
    }
    found.push({ ...conversation, pictures });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations: found }, null, 1);
}

/** Return [{conversation, images}] of a file. Throws an Error whose message is for the reader. */
export async function importFile(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than ${MAX_BYTES / 1e6} MB.`);
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON.`);
  }
  if (data?.format !== FORMAT || data.version !== 1 || !Array.isArray(data.conversations)) {
    throw new Error(`${file.name} is not an export of conversations (wanted format "${FORMAT}", version 1).`);
  }
  return data.conversations.map(readConversation);
}

function readConversation(data) {
  const images = [];
  const picture = readPictures(data?.pictures, images);
  const conversation = newConversation({ system: text(data?.system), model: text(data?.model) });
  for (const name in EMPTY_PARAMETERS) conversation.parameters[name] = number(data?.parameters?.[name]);
  const ids = new Map();
  for (const message of Array.isArray(data?.messages) ? data.messages : []) {
    const read = readMessage(message, ids, picture);
    if (read) conversation.messages.push(read);
  }
  const head = ids.get(data?.head) ?? conversation.messages.at(-1)?.id ?? null;
  const title = plainText(text(data?.title)).slice(0, 200);
  const times = { created: number(data?.created) ?? Date.now(), updated: number(data?.updated) ?? Date.now() };
  return { conversation: { ...conversation, ...times, head, title, isNamed: Boolean(data?.isNamed) }, images };
}

function readPictures(pictures, images) {
  const known = new Map();
  return (id) => {
    if (!known.has(id) && typeof pictures?.[id] === "string") {
      try {
        known.set(id, newId());
        images.push({ id: known.get(id), blob: blobOf(pictures[id]) });
      } catch {
        known.set(id, null);
      }
    }
    return known.get(id) ?? null;
  };
}

const STATES = new Set(["done", "stopped", "interrupted", "failed"]);

function readMessage(data, ids, picture) {
  if (data?.role !== "user" && data?.role !== "assistant") return null;
  const parent = ids.get(data.parent) ?? null;
  if (data.parent && parent === null) return null; // below a message that is not there
  const images = [];
  for (const image of Array.isArray(data.images) ? data.images : []) {
    const id = picture(image?.id);
    const size = { width: number(image?.width) ?? 0, height: number(image?.height) ?? 0 };
    if (id) images.push({ id, name: plainText(text(image.name)), ...size });
  }
  const id = newId();
  ids.set(data.id, id);
  const state = STATES.has(data.state) ? data.state : "done";
  const message = { id, parent, role: data.role, text: text(data.text), images, state, time: number(data.time) ?? Date.now() };
  return { ...message, model: text(data.model), finish: text(data.finish), stats: readStats(data.stats) };
}

function readStats(stats) {
  const names = ["rate", "firstTokenMs", "promptTokens", "answerTokens", "cachedTokens"];
  return stats && typeof stats === "object" ? Object.fromEntries(names.map((name) => [name, number(stats[name])])) : null;
}

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
