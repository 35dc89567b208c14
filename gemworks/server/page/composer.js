// The field at the bottom: text, pictures by button, drop and paste, send and stop.

import { announce } from "./announce.js";
import { byId, el, icon, iconButton } from "./dom.js";
import { MAX_IMAGES, filesOf, readImage } from "./images.js";
import { fit } from "./message.js";

const DRAFT = "gemworks-draft-";

export class Composer {
  /** onSend(text, images) returns whether it was sent; onStop(); onLast() edits the last question; onNotice(text). */
  constructor({ onSend, onStop, onLast, onNotice }) {
    Object.assign(this, { onSend, onStop, onLast, onNotice });
    this.form = byId("composer");
    this.field = byId("question");
    this.button = byId("send");
    this.attach = byId("attach");
    this.files = byId("files");
    this.tray = byId("tray");
    this.images = [];
    this.reading = 0;
    this.eyes = null;
    this.listen();
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isRunning) this.onStop();
      else this.send();
    });
    this.field.addEventListener("keydown", (event) => this.onKey(event));
    this.field.addEventListener("input", () => this.changed());
    this.attach.addEventListener("click", () => this.files.click());
    this.files.addEventListener("change", () => {
      this.add([...this.files.files]);
      this.files.value = "";
    });
    this.field.addEventListener("paste", (event) => {
      const files = filesOf(event.clipboardData);
      // A copied cell of a spreadsheet brings a picture of itself along with its text: the text is meant.
      if (!files.length || event.clipboardData.types.includes("text/plain")) return;
      event.preventDefault();
      this.add(files);
    });
    this.listenToDrops();
  }

  listenToDrops() {
    const hint = byId("drop");
    let depth = 0; // enter and leave come for every element that is crossed
    const show = (isOver) => {
      if (!isOver) depth = 0;
      hint.hidden = !isOver;
    };
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragenter", (event) => holdsFiles(event) && (depth++, show(true)));
    window.addEventListener("dragleave", (event) => holdsFiles(event) && --depth <= 0 && show(false));
    window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      show(false);
      this.add(filesOf(event.dataTransfer));
    });
  }

  onKey(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!this.isRunning) this.send();
    } else if (event.key === "ArrowUp" && !this.field.value) {
      event.preventDefault();
      this.onLast();
    }
  }

  async send() {
    if (this.reading) return this.onNotice("A picture is still being read.");
    const text = this.field.value.trim();
    if (!text && !this.images.length) return;
    const { images } = this;
    if (!(await this.onSend(text, images))) return;
    this.field.value = "";
    for (const image of images) URL.revokeObjectURL(image.url);
    this.images = [];
    this.changed();
    this.showTray();
  }

  /** Put a text into the field, ready to be changed. */
  fill(text) {
    this.field.value = text;
    this.changed();
    this.field.focus();
  }

  /** Show the draft of a conversation; drafts last as long as the tab. */
  open(id) {
    if (this.id === id) return;
    this.id = id;
    let draft = "";
    try {
      draft = sessionStorage.getItem(DRAFT + id) ?? "";
    } catch {
      // no storage: no drafts
    }
    for (const image of this.images) URL.revokeObjectURL(image.url);
    this.images = [];
    this.field.value = draft;
    this.changed();
    this.showTray();
  }

  changed() {
    fit(this.field);
    this.showButton();
    if (!this.id) return;
    try {
      if (this.field.value) sessionStorage.setItem(DRAFT + this.id, this.field.value);
      else sessionStorage.removeItem(DRAFT + this.id);
    } catch {
      // no storage, or full: no drafts
    }
  }

  /** Whether an answer is being written: the button stops it then. */
  setRunning(isRunning) {
    this.isRunning = isRunning;
    this.showButton();
  }

  showButton() {
    const name = this.isRunning ? "stop" : "send";
    this.button.disabled = !this.isRunning && !this.field.value.trim() && !this.images.length;
    this.button.setAttribute("aria-label", this.isRunning ? "Stop (Esc)" : "Send");
    this.button.title = this.isRunning ? "Stop (Esc)" : "Send (Enter)";
    if (this.button.dataset.shows === name) return;
    this.button.dataset.shows = name;
    this.button.replaceChildren(icon(name));
  }

  /** eyes: whether the model sees pictures; null where that is not known. */
  setEyes(eyes, model) {
    this.eyes = eyes;
    this.model = model;
    const label = eyes === false ? `${model} does not see pictures` : "Add pictures";
    this.attach.setAttribute("aria-disabled", String(eyes === false));
    this.attach.setAttribute("aria-label", label);
    this.attach.title = label;
    this.showTray();
  }

  async add(files) {
    if (!files.length) return;
    if (this.eyes === false) return this.onNotice(`${this.model} does not see pictures. Choose a model with eyes.`);
    for (const file of files) {
      if (this.images.length >= MAX_IMAGES) return this.onNotice(`At most ${MAX_IMAGES} pictures in a message.`);
      this.reading++;
      this.showTray();
      try {
        const image = await readImage(file);
        this.images.push({ ...image, url: URL.createObjectURL(image.blob) });
        announce(`${image.name} added.`);
      } catch (error) {
        this.onNotice(error.message);
      }
      this.reading--;
      this.showTray();
      this.showButton();
    }
    this.field.focus();
  }

  showTray() {
    const kids = this.images.map((image) => {
      const remove = iconButton("close", `Remove ${image.name}`, () => this.remove(image), { class: "icon-button remove" });
      return el("li", {}, el("img", { src: image.url, alt: image.name }), remove);
    });
    if (this.reading) kids.push(el("li", { class: "reading", "aria-label": "Reading a picture" }));
    this.tray.replaceChildren(...kids);
    this.tray.hidden = kids.length === 0;
    this.form.classList.toggle("blind", this.eyes === false && this.images.length > 0);
  }

  remove(image) {
    URL.revokeObjectURL(image.url);
    this.images = this.images.filter((other) => other !== image);
    this.showTray();
    this.showButton();
    this.field.focus();
  }
}
