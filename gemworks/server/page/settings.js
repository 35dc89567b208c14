// The settings: of this conversation (system prompt, sampling), of the page (theme), of the server (key), and of what
// is stored (export, import, delete).

import { byId } from "./dom.js";
import { applyTheme, preferences } from "./preferences.js";

// name -> [least, most, whole]; what is empty is not sent, and the server's default holds.
const RANGES = { temperature: [0, 2], top_p: [0, 1], top_k: [0, 1_000_000, true], max_tokens: [1, 10_000_000, true], seed: [0, 2 ** 53 - 1, true] };

export class Settings {
  /** actions: onChange(), onKey(key, isLasting), onExport(), onExportAll(), onImport(file), onDeleteAll(). */
  constructor(actions) {
    this.actions = actions;
    this.dialog = byId("settings");
    this.form = byId("settings-form");
    byId("open-settings").addEventListener("click", () => this.open());
    byId("close-settings").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => this.onInput(event.target));
    byId("reset").addEventListener("click", () => this.reset());
    byId("as-default").addEventListener("click", () => this.asDefault());
    this.listenToData();
  }

  listenToData() {
    const files = byId("import-file");
    byId("export").addEventListener("click", () => this.actions.onExport());
    byId("export-all").addEventListener("click", () => this.actions.onExportAll());
    byId("import").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      for (const file of files.files) this.actions.onImport(file);
      files.value = "";
    });
    const ask = byId("ask");
    byId("delete-all").addEventListener("click", () => ask.showModal());
    ask.addEventListener("close", () => ask.returnValue === "delete" && this.actions.onDeleteAll());
  }

  /** Show the settings of a conversation. */
  show(conversation) {
    this.conversation = conversation;
    const { elements } = this.form;
    elements.system.value = conversation.system;
    for (const name in RANGES) this.showNumber(name, conversation.parameters[name]);
    elements.theme.value = preferences.get("theme");
    elements.key.value = preferences.key;
    elements.keepsKey.checked = preferences.get("keepsKey");
    const count = Object.values(conversation.parameters).filter((value) => value !== null).length + (conversation.system.trim() ? 1 : 0);
    byId("open-settings").classList.toggle("changed", count > 0);
  }

  showNumber(name, value) {
    const field = this.form.elements[name];
    field.value = value ?? "";
    field.setCustomValidity("");
    const slider = this.form.elements[`${name}-slider`];
    if (!slider) return;
    slider.value = value ?? slider.dataset.rest;
    slider.classList.toggle("at-rest", value === null);
    slider.setAttribute("aria-valuetext", value === null ? "server default" : String(value));
  }

  open() {
    this.show(this.conversation);
    this.dialog.showModal();
  }

  onInput(field) {
    const { conversation } = this;
    const name = field.name.replace(/-slider$/, "");
    if (name in RANGES) {
      const value = this.read(name, field);
      if (value === undefined) return;
      conversation.parameters[name] = value;
      if (field.name !== name) this.showNumber(name, value);
      else this.showSlider(name, value);
    } else if (name === "system") conversation.system = field.value;
    else if (name === "theme") {
      preferences.set("theme", field.value);
      return applyTheme(field.value);
    } else if (name === "key" || name === "keepsKey") {
      const { key, keepsKey } = this.form.elements;
      return this.actions.onKey(key.value.trim(), keepsKey.checked);
    } else return;
    this.actions.onChange();
  }

  showSlider(name, value) {
    const text = this.form.elements[name].value;
    this.showNumber(name, value);
    this.form.elements[name].value = text; // "0." stays while it is typed
  }

  /** The number of a field: null where it is empty, undefined where it is not one (the field says so). */
  read(name, field) {
    const [least, most, isWhole] = RANGES[name];
    const value = field.value.trim() === "" && !field.validity.badInput ? null : Number(field.value);
    const isGood = value === null || (!field.validity.badInput && value >= least && value <= most && (!isWhole || Number.isInteger(value)));
    const range = most > 1e5 ? `of at least ${least}` : `from ${least} to ${most}`;
    field.setCustomValidity(isGood ? "" : `Wanted a ${isWhole ? "whole number" : "number"} ${range}.`);
    if (!isGood) field.reportValidity();
    return isGood ? value : undefined;
  }

  reset() {
    this.conversation.system = "";
    for (const name in RANGES) this.conversation.parameters[name] = null;
    this.show(this.conversation);
    this.actions.onChange();
  }

  asDefault() {
    preferences.set("system", this.conversation.system);
    preferences.set("parameters", { ...this.conversation.parameters });
    this.actions.onNotice("New conversations begin with this system prompt and these parameters.");
  }
}

/** The parameters that are set, as fields of a request. */
export function requestParameters(parameters) {
  return Object.fromEntries(Object.entries(parameters).filter(([name, value]) => name in RANGES && value !== null));
}
