// The choice of a model, what is known of it, and how full its context is.

import { byId, el } from "./dom.js";
import { preferences } from "./preferences.js";

export class Models {
  /** onChange(id) when the reader chose one. */
  constructor(onChange) {
    this.all = [];
    this.select = byId("model");
    this.select.addEventListener("change", () => {
      preferences.set("model", this.select.value);
      onChange(this.select.value);
    });
  }

  /** Show what the server serves: Server.models(). */
  show(models) {
    this.all = models.filter((model) => model.chats);
    this.select.disabled = this.all.length === 0;
    this.select.replaceChildren(...this.all.map(({ id }) => el("option", { value: id }, id)));
    if (!this.all.length) this.select.append(el("option", {}, "No model"));
  }

  /** The model to use where `wanted` is asked for: it, the one chosen last, or the server's first. */
  pick(wanted) {
    for (const id of [wanted, preferences.get("model")]) if (this.known(id)) return id;
    return this.all[0]?.id ?? "";
  }

  known(id) {
    return this.all.find((model) => model.id === id);
  }

  set chosen(id) {
    if (this.known(id)) this.select.value = id;
  }
}

/** Show how much of the context a conversation filled when its last answer ended. */
export function showContextUse(message, model) {
  const meter = byId("context");
  const used = (message?.stats?.promptTokens ?? 0) + (message?.stats?.answerTokens ?? 0);
  meter.hidden = !used;
  if (!used) return;
  const count = (tokens) => tokens.toLocaleString("en");
  const size = model?.context ?? null;
  const text = size ? `${count(used)} of ${count(size)} tokens` : `${count(used)} tokens`;
  const share = size ? Math.min(1, used / size) : 0;
  const bar = el("span", { class: share > 0.85 ? "fill high" : "fill" });
  bar.style.width = `${Math.round(share * 100)}%`;
  const label = el("span", {}, text);
  meter.replaceChildren(el("span", { class: "off-screen" }, "Context: "), ...(size ? [el("span", { class: "bar" }, bar)] : []), label);
  meter.title = share > 0.85 ? "The context is nearly full: begin a new conversation soon." : "Context used after the last answer";
}
