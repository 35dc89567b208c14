// The page: puts the parts together and holds the conversation that is shown.

import { announce } from "./announce.js";
import { Server } from "./api.js";
import { Composer } from "./composer.js";
import { addMessage, choose, imagesOf, newConversation, path, settleInterrupted } from "./conversation.js";
import { byId, el } from "./dom.js";
import { keyForm } from "./errorcard.js";
import { Models, showContextUse } from "./models.js";
import { applyTheme, preferences } from "./preferences.js";
import { Runs } from "./runs.js";
import { Settings, requestParameters } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { Thread, welcome } from "./thread.js";
import { toast } from "./toast.js";
import { exportText, importFile } from "./transfer.js";

const SUGGESTIONS = [
  "Explain how rainbows form, in three short paragraphs",
  "Write a Python function that finds the longest common prefix of a list of strings",
  "Plan a quiet weekend in the mountains, as a table",
];

class App {
  async start() {
    applyTheme(preferences.get("theme"));
    this.server = new Server(() => preferences.key);
    this.store = await openStore();
    this.runs = new Runs(this.server, this.store, (run, kind, error) => this.onRun(run, kind, error));
    this.urls = new Map(); // picture id -> object URL
    this.composer = new Composer({
      onSend: (text, images) => this.send(text, images),
      onStop: () => this.runs.stop(this.conversation),
      onLast: () => this.editLast(),
      onNotice: toast,
    });
    this.thread = new Thread(this.messageActions(), () => this.welcome());
    this.models = new Models((id) => this.onModel(id));
    this.settings = new Settings({
      onChange: () => this.onSettings(),
      onKey: (key, isLasting) => this.useKey(key, isLasting),
      onExport: () => this.download([this.conversation]),
      onExportAll: async () => this.download(await this.store.conversations()),
      onImport: (file) => this.importFile(file),
      onDeleteAll: () => this.deleteAll(),
      onNotice: toast,
    });
    this.sidebar = new Sidebar({
      onNew: () => this.openNew(),
      onRename: (id, title) => this.rename(id, title),
      onDelete: (id) => this.remove(id),
      find: (words) => this.find(words),
    });
    this.listen();
    await this.route();
    await this.loadModels();
    document.documentElement.dataset.ready = "true";
    if (!this.store.isKept) toast("This browser keeps nothing here: conversations last as long as this page.");
  }

  listen() {
    window.addEventListener("hashchange", () => this.route());
    window.addEventListener("pagehide", () => this.runs.saveAll());
    window.addEventListener("online", () => this.problem && this.loadModels());
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.store.onChange((id) => this.onOtherTab(id));
    byId("show-picture").addEventListener("click", (event) => event.currentTarget.close());
  }

  onKey(event) {
    const isCommand = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (isCommand && event.key.toLowerCase() === "k") (event.preventDefault(), this.sidebar.focusSearch());
    else if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") (event.preventDefault(), this.openNew());
    else if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) {
      if (this.sidebar.isOpen && this.sidebar.isDrawer) this.sidebar.toggle(false);
      else this.runs.stop(this.conversation);
    }
  }

  // --- which conversation -------------------------------------------------------------------------------------

  /** Show what the address names: "#/id", or a new conversation. */
  async route() {
    const id = location.hash.replace(/^#\/?/, "");
    const running = [...this.runs.running.values()].find((run) => run.conversation.id === id);
    const stored = running?.conversation ?? (id && (await this.store.conversation(id)));
    if (stored && !running && stored !== this.conversation) settleInterrupted(stored);
    if (id && !stored && id !== this.conversation?.id) history.replaceState(null, "", "#");
    if (stored && stored.id === this.conversation?.id && !running) return this.refresh();
    this.show(stored || this.fresh());
  }

  fresh() {
    return newConversation({ system: preferences.get("system"), parameters: preferences.get("parameters") });
  }

  openNew() {
    if (location.hash.length > 2) location.hash = "";
    else this.show(this.fresh());
    byId("question").focus();
  }

  show(conversation) {
    this.conversation = conversation;
    this.composer.open(conversation.messages.length ? conversation.id : "new");
    this.refresh();
  }

  /** Show the conversation as it is now. */
  async refresh() {
    const { conversation } = this;
    conversation.model = this.models.pick(conversation.model) || conversation.model;
    this.models.chosen = conversation.model;
    const model = this.models.known(conversation.model);
    this.composer.setEyes(model?.eyes ?? null, conversation.model);
    this.composer.setRunning(Boolean(this.runs.get(conversation)));
    this.thread.show(conversation);
    this.settings.show(conversation);
    const answers = path(conversation).filter((message) => message.role === "assistant" && message.stats);
    showContextUse(answers.at(-1), model);
    const title = conversation.title || "New conversation";
    byId("title").textContent = title;
    document.title = conversation.title ? `${conversation.title} - Gemworks` : "Gemworks";
    await this.listConversations();
  }

  async listConversations() {
    this.sidebar.show(await this.store.summaries(), this.conversation.id);
    this.sidebar.setRunning(this.runs.running.keys());
  }

  async onOtherTab(id) {
    const isShown = this.conversation.id === id && !this.runs.get(this.conversation);
    const stored = isShown && (await this.store.conversation(id));
    if (stored) this.show(stored);
    else this.listConversations();
  }

  // --- the server ---------------------------------------------------------------------------------------------

  async loadModels() {
    try {
      this.models.show(await this.server.models());
      this.problem = null;
    } catch (error) {
      this.problem = error;
      this.models.show([]);
    }
    if (!this.conversation.messages.length) this.thread.list.replaceChildren();
    await this.refresh();
  }

  useKey(key, isLasting, next) {
    preferences.setKey(key, isLasting);
    const isReady = this.loadModels();
    if (next) isReady.then(next);
  }

  onModel(id) {
    this.conversation.model = id;
    this.onSettings();
    this.refresh();
    announce(`Model ${id}.`);
  }

  /** Settings of the conversation changed; one without messages is not stored. */
  onSettings() {
    if (this.conversation.messages.length) this.save();
  }

  // --- asking -------------------------------------------------------------------------------------------------

  messageActions() {
    return {
      onEdit: (message, text) => this.ask(message.parent, text, message.images),
      onAgain: (message) => this.answer(this.conversation, message.parent),
      onChoose: (message) => (choose(this.conversation, message), this.save(), this.refresh()),
      onPicture: (url, name) => this.showPicture(url, name),
      onKey: (key, isLasting, next) => this.useKey(key, isLasting, next),
      imageUrl: (id) => this.imageUrl(id),
    };
  }

  async send(text, images) {
    if (this.runs.get(this.conversation)) return false;
    if (!this.canSee(images)) return false;
    try {
      if (images.length) await this.store.saveImages(images.map(({ id, blob }) => ({ id, blob })));
    } catch {
      toast("The browser has no room left for this picture. Delete a conversation with pictures first.");
      return false;
    }
    const kept = images.map(({ id, name, width, height }) => ({ id, name, width, height }));
    // The end of what is shown; a question whose answer never came is followed by the new one.
    this.ask(path(this.conversation).at(-1)?.id ?? null, text, kept);
    return true;
  }

  canSee(images) {
    const model = this.models.known(this.conversation.model);
    if (model?.eyes !== false || !images.length) return true;
    toast(`${model.id} does not see pictures. Choose a model with eyes, or remove them.`);
    return false;
  }

  async ask(parent, text, images) {
    const { conversation } = this;
    if (!this.canSee(images)) return;
    await this.runs.stop(conversation);
    const question = addMessage(conversation, parent, { role: "user", text, images });
    if (location.hash !== `#/${conversation.id}`) history.pushState(null, "", `#/${conversation.id}`);
    this.composer.id = conversation.id;
    this.answer(conversation, question.id);
  }

  /** Write a new answer to the question `parent`. */
  async answer(conversation, parent) {
    // The server may not have answered when the page opened.
    if (!this.models.all.length) await this.loadModels();
    if (this.runs.get(conversation)) return;
    const message = addMessage(conversation, parent, { role: "assistant", state: "streaming", model: conversation.model, stats: null });
    this.runs.start(conversation, message, requestParameters(conversation.parameters));
    this.save(conversation);
    this.refresh();
    this.thread.toEnd("instant");
  }

  onRun(run, kind, error) {
    const isShown = run.conversation === this.conversation;
    if (kind === "text" && isShown) this.thread.view(run.message)?.grow();
    if (kind === "unsaved") toast(`This conversation could not be stored: ${error?.message ?? "the browser refused"}.`);
    if (kind !== "end") return;
    if (isShown) {
      this.thread.view(run.message)?.finish();
      this.refresh();
    } else this.listConversations();
  }

  editLast() {
    const last = path(this.conversation).findLast((message) => message.role === "user");
    if (last && !this.runs.get(this.conversation)) this.thread.view(last).edit();
  }

  async save(conversation = this.conversation) {
    await this.runs.save(conversation);
    await this.listConversations();
  }

  // --- the list -----------------------------------------------------------------------------------------------

  async rename(id, title) {
    const running = this.runs.running.get(id)?.conversation;
    const conversation = id === this.conversation.id ? this.conversation : (running ?? (await this.store.conversation(id)));
    Object.assign(conversation, { title, isNamed: true });
    await this.save(conversation);
    if (conversation === this.conversation) this.refresh();
  }

  async remove(id) {
    const running = this.runs.running.get(id);
    if (running) await this.runs.stop(running.conversation);
    const conversation = await this.store.conversation(id);
    const images = await Promise.all(imagesOf(conversation).map((image) => this.store.image(image)));
    const wasShown = id === this.conversation.id;
    await this.store.remove(id, imagesOf(conversation));
    if (wasShown) (history.replaceState(null, "", "#"), this.show(this.fresh()));
    else await this.listConversations();
    const restore = async () => {
      await this.store.saveImages(images.filter(Boolean));
      await this.store.save(settleInterrupted(conversation));
      if (wasShown) location.hash = `#/${id}`;
      else await this.listConversations();
    };
    toast(`"${conversation.title}" deleted.`, { label: "Undo", run: restore });
    byId("question").focus();
  }

  async deleteAll() {
    await Promise.all([...this.runs.running.values()].map((run) => this.runs.stop(run.conversation)));
    await this.store.removeAll();
    history.replaceState(null, "", "#");
    byId("settings").close();
    this.show(this.fresh());
    toast("All conversations are deleted.");
  }

  async find(words) {
    const all = await this.store.conversations();
    const holds = ({ messages }) => messages.some((message) => message.text.toLowerCase().includes(words));
    return new Set(all.filter(holds).map(({ id }) => id));
  }

  async download(conversations) {
    const kept = conversations.filter((conversation) => conversation.messages.length);
    if (!kept.length) return toast("There is nothing to export yet.");
    const blob = new Blob([await exportText(kept, this.store)], { type: "application/json" });
    const url = URL.createObjectURL(blob);
    const day = new Date().toISOString().slice(0, 10);
    el("a", { href: url, download: `gemworks-${kept.length === 1 ? "conversation" : "conversations"}-${day}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async importFile(file) {
    try {
      const found = await importFile(file);
      for (const { conversation, images } of found) {
        if (images.length) await this.store.saveImages(images);
        await this.store.save(conversation);
      }
      await this.listConversations();
      toast(found.length === 1 ? "One conversation imported." : `${found.length} conversations imported.`);
    } catch (error) {
      toast(error.message);
    }
  }

  // --- pictures and the empty page ----------------------------------------------------------------------------

  async imageUrl(id) {
    if (!this.urls.has(id)) {
      const image = await this.store.image(id);
      this.urls.set(id, image ? URL.createObjectURL(image.blob) : null);
    }
    return this.urls.get(id);
  }

  showPicture(url, name) {
    const dialog = byId("show-picture");
    dialog.querySelector("img").src = url;
    dialog.querySelector("img").alt = name || "Picture";
    dialog.showModal();
  }

  welcome() {
    const onSuggestion = (text) => this.composer.fill(text);
    if (!this.problem) return welcome({ title: "What would you like to know?", suggestions: SUGGESTIONS, onSuggestion });
    if (this.problem.kind === "key") {
      const extra = keyForm((key, isLasting) => this.useKey(key, isLasting), "Continue");
      return welcome({ title: "This server asks for an API key", text: this.problem.message, suggestions: [], extra });
    }
    const again = el("button", { type: "button", class: "primary" }, "Try again");
    again.addEventListener("click", () => this.loadModels());
    return welcome({ title: "The server does not answer", text: this.problem.message, suggestions: [], extra: again });
  }
}

new App().start();
