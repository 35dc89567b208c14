// Conversations and pictures in the browser's IndexedDB; in memory where the browser keeps nothing (a private window).
//
// Three tables: conversations (whole), summaries (what the list shows) and images (blobs, apart, so that saving an
// answer that grows does not write its pictures again).

const TABLES = ["conversations", "summaries", "images"];

/** Open the store; `isKept` is false where it lasts only as long as this page. */
export async function openStore() {
  try {
    return new Store(await openDatabase(), true);
  } catch {
    return new Store(new MemoryDatabase(), false);
  }
}

class Store {
  constructor(database, isKept) {
    this.database = database;
    this.isKept = isKept;
    // Other tabs of this page hear what changed.
    this.channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("gemworks");
  }

  /** Call `heard(id)` when another tab saved or removed that conversation. */
  onChange(heard) {
    if (this.channel) this.channel.onmessage = (event) => heard(event.data);
  }

  /** Summaries {id, title, updated}, newest first. */
  async summaries() {
    const all = await this.database.all("summaries");
    return all.sort((a, b) => b.updated - a.updated);
  }

  conversation(id) {
    return this.database.get("conversations", id);
  }

  conversations() {
    return this.database.all("conversations");
  }

  async save(conversation) {
    const { id, title, updated } = conversation;
    await this.database.put({ conversations: [conversation], summaries: [{ id, title, updated }] });
    this.channel?.postMessage(id);
  }

  async remove(id, imageIds) {
    await this.database.remove({ conversations: [id], summaries: [id], images: imageIds });
    this.channel?.postMessage(id);
  }

  async removeAll() {
    await this.database.clear();
    this.channel?.postMessage(null);
  }

  image(id) {
    return this.database.get("images", id);
  }

  saveImages(images) {
    return this.database.put({ images });
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("gemworks", 1);
    request.onupgradeneeded = () => {
      for (const table of TABLES) request.result.createObjectStore(table, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(new IndexedDatabase(request.result));
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version open"));
  });
}

class IndexedDatabase {
  constructor(database) {
    this.database = database;
    // A newer page in another tab may need to change the tables.
    database.onversionchange = () => database.close();
  }

  get(table, id) {
    return result(this.database.transaction(table).objectStore(table).get(id));
  }

  all(table) {
    return result(this.database.transaction(table).objectStore(table).getAll());
  }

  put(rows) {
    return this.change((transaction) => {
      for (const table in rows) for (const row of rows[table]) transaction.objectStore(table).put(row);
    });
  }

  remove(ids) {
    return this.change((transaction) => {
      for (const table in ids) for (const id of ids[table]) transaction.objectStore(table).delete(id);
    });
  }

  clear() {
    return this.change((transaction) => TABLES.forEach((table) => transaction.objectStore(table).clear()));
  }

  change(work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(TABLES, "readwrite");
      work(transaction);
      transaction.oncomplete = () => resolve();
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  }
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class MemoryDatabase {
  constructor() {
    this.tables = Object.fromEntries(TABLES.map((table) => [table, new Map()]));
  }

  async get(table, id) {
    return this.tables[table].get(id);
  }

  async all(table) {
    return [...this.tables[table].values()];
  }

  async put(rows) {
    for (const table in rows) for (const row of rows[table]) this.tables[table].set(row.id, structuredClone(row));
  }

  async remove(ids) {
    for (const table in ids) for (const id of ids[table]) this.tables[table].delete(id);
  }

  async clear() {
    for (const table of TABLES) this.tables[table].clear();
  }
}
