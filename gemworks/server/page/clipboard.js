// Copying, also over plain http, where browsers offer no clipboard to scripts.

import { announce } from "./announce.js";

/** Copy a text and say so, on the button that was pressed and to those who listen. */
export async function copyText(text, button) {
  const isDone = (await modern(text)) || classic(text);
  announce(isDone ? "Copied." : "The browser did not allow copying.");
  if (!isDone) return;
  button.classList.add("did");
  setTimeout(() => button.classList.remove("did"), 1400);
}

async function modern(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // no clipboard on plain http, or permission denied
  }
}

function classic(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "off-screen";
  area.setAttribute("aria-hidden", "true");
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isDone;
}
