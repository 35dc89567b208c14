// Short notices at the bottom, one at a time, with one thing that can be done about them.

import { announce } from "./announce.js";
import { byId, el, iconButton } from "./dom.js";

const SHOWN_MS = 7000;
let timer;

/** Show a notice. action: {label, run}. It stays while the pointer or the focus is on it. */
export function toast(text, action) {
  const box = byId("toast");
  clearTimeout(timer);
  const hide = () => (box.hidden = true);
  const button = action && el("button", { type: "button", class: "quiet" }, action.label);
  button?.addEventListener("click", () => (hide(), action.run()));
  box.replaceChildren(el("span", { dir: "auto" }, text), ...(button ? [button] : []), iconButton("close", "Dismiss", hide));
  box.hidden = false;
  announce(action ? `${text} ${action.label} is offered.` : text);
  const wait = () => {
    timer = setTimeout(() => (box.matches(":hover, :focus-within") ? wait() : hide()), SHOWN_MS);
  };
  wait();
}
