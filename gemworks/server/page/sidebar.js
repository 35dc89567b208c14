// The list of conversations: by day, searched, renamed, deleted. A drawer where the window is narrow.

import { byId, el, iconButton } from "./dom.js";
import { plainText } from "./links.js";
import { preferences } from "./preferences.js";

const NARROW = matchMedia("(max-width: 52rem)");
const DAY_MS = 86_400_000;

export class Sidebar {
  /** actions: onNew(), onOpen(id), onRename(id, title), onDelete(id), find(words) -> ids whose messages hold them. */
  constructor(actions) {
    this.actions = actions;
    this.panel = byId("sidebar");
    this.list = byId("conversations");
    this.search = byId("search");
    this.summaries = [];
    this.running = new Set();
    byId("new").addEventListener("click", () => (this.closeDrawer(), actions.onNew()));
    byId("menu").addEventListener("click", () => this.toggle());
    byId("close-sidebar").addEventListener("click", () => this.toggle(false));
    byId("shade").addEventListener("click", () => this.toggle(false));
    this.search.addEventListener("input", () => this.onSearch());
    this.search.addEventListener("keydown", (event) => this.onSearchKey(event));
    this.list.addEventListener("keydown", (event) => this.onListKey(event));
    NARROW.addEventListener("change", () => this.toggle(!NARROW.matches && preferences.get("isSidebarOpen")));
    this.toggle(!NARROW.matches && preferences.get("isSidebarOpen"), false);
  }

  get isDrawer() {
    return NARROW.matches;
  }

  toggle(isOpen = !this.isOpen, isChosen = true) {
    const wasOpen = this.isOpen;
    this.isOpen = isOpen;
    document.body.classList.toggle("sidebar-open", isOpen);
    this.panel.inert = !isOpen;
    byId("page").inert = isOpen && this.isDrawer;
    byId("menu").setAttribute("aria-expanded", String(isOpen));
    if (isChosen && !this.isDrawer) preferences.set("isSidebarOpen", isOpen);
    if (isOpen && this.isDrawer) byId("close-sidebar").focus();
    if (!isOpen && wasOpen && this.isDrawer) byId("menu").focus();
  }

  closeDrawer() {
    if (this.isOpen && this.isDrawer) this.toggle(false);
  }

  /** Ctrl+K: the search field, wherever the list is. */
  focusSearch() {
    this.toggle(true);
    this.search.focus();
    this.search.select();
  }

  /** Show these conversations; `open` is the id of the one on the page. */
  show(summaries, open) {
    this.summaries = summaries;
    this.open = open;
    this.draw();
  }

  setRunning(ids) {
    this.running = new Set(ids);
    for (const row of this.list.querySelectorAll("li[data-id]")) row.classList.toggle("running", this.running.has(row.dataset.id));
  }

  draw() {
    const words = this.search.value.trim().toLowerCase();
    const isFound = ({ id, title }) => !words || title.toLowerCase().includes(words) || this.found?.has(id);
    const shown = this.summaries.filter(isFound);
    const kids = [];
    let group = null;
    for (const summary of shown) {
      const name = dayOf(summary.updated);
      if (name !== group?.name) {
        group = { name, list: el("ul", {}) };
        const id = `day-${kids.length}`;
        group.list.setAttribute("aria-labelledby", id);
        kids.push(el("section", {}, el("h3", { id }, name), group.list));
      }
      group.list.append(this.row(summary));
    }
    if (!shown.length) kids.push(el("p", { class: "none" }, words ? "Nothing found." : "Conversations will be listed here. They stay in this browser."));
    this.list.replaceChildren(...kids);
  }

  row({ id, title }) {
    const name = title || "Untitled";
    const link = el("a", { href: `#/${id}`, dir: "auto", title: name, "aria-current": id === this.open ? "page" : null }, name);
    link.addEventListener("click", () => this.closeDrawer());
    const row = el(
      "li",
      { "data-id": id, class: this.running.has(id) ? "running" : null },
      link,
      iconButton("edit", `Rename ${name}`, () => this.rename(row, id, title)),
      iconButton("bin", `Delete ${name}`, () => this.actions.onDelete(id)),
    );
    return row;
  }

  rename(row, id, title) {
    const field = el("input", { type: "text", value: title, "aria-label": "Title", maxlength: "200", dir: "auto" });
    let isOver = false;
    const end = (isKept) => {
      if (isOver) return;
      isOver = true;
      const text = plainText(field.value);
      if (isKept && text && text !== title) this.actions.onRename(id, text);
      this.draw();
      this.list.querySelector(`li[data-id="${id}"] a`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") (event.stopPropagation(), end(false));
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.focus();
    field.select();
  }

  onSearch() {
    clearTimeout(this.timer);
    this.found = null;
    this.draw();
    const words = this.search.value.trim().toLowerCase();
    if (!words) return;
    // Titles at once, texts a moment later: they are read from the store.
    this.timer = setTimeout(async () => {
      const found = await this.actions.find(words);
      if (words !== this.search.value.trim().toLowerCase()) return;
      this.found = found;
      this.draw();
    }, 150);
  }

  onSearchKey(event) {
    const links = this.list.querySelectorAll("a");
    if (event.key === "ArrowDown" && links.length) (event.preventDefault(), links[0].focus());
    if (event.key === "Enter" && links.length) (event.preventDefault(), links[0].click());
    if (event.key === "Escape") {
      event.stopPropagation();
      this.search.value = "";
      this.onSearch();
      if (this.isDrawer) this.toggle(false);
      else byId("question").focus();
    }
  }

  onListKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches("a")) return;
    event.preventDefault();
    const links = [...this.list.querySelectorAll("a")];
    const next = links[links.indexOf(event.target) + step];
    (next ?? (step < 0 ? this.search : event.target)).focus();
  }
}

function dayOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  if (time >= today - 7 * DAY_MS) return "Last 7 days";
  if (time >= today - 30 * DAY_MS) return "Last 30 days";
  return "Older";
}
