// What the browser remembers beside conversations: theme, model, defaults of new conversations, the API key.

const NAME = "gemworks-preferences";
const KEY = "gemworks-key";
const DEFAULTS = { theme: "system", model: "", system: "", parameters: {}, isSidebarOpen: true, keepsKey: false };

function storage(kind) {
  try {
    const found = window[kind];
    found.getItem(NAME);
    return found;
  } catch {
    return null; // the browser forbids it; what is set lasts as long as the page
  }
}

class Preferences {
  constructor() {
    this.lasting = storage("localStorage");
    this.session = storage("sessionStorage");
    this.values = { ...DEFAULTS };
    this.secret = this.session?.getItem(KEY) ?? this.lasting?.getItem(KEY) ?? "";
    try {
      Object.assign(this.values, JSON.parse(this.lasting?.getItem(NAME) ?? "{}"));
    } catch {
      // written by something else: the defaults stand
    }
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    this.write(this.lasting, NAME, JSON.stringify(this.values));
  }

  get key() {
    return this.secret;
  }

  /** Keep the API key for this tab, or on this device. */
  setKey(key, isLasting) {
    this.secret = key;
    this.set("keepsKey", isLasting);
    this.lasting?.removeItem(KEY);
    this.session?.removeItem(KEY);
    if (key) this.write(isLasting ? this.lasting : this.session, KEY, key);
  }

  write(place, name, value) {
    try {
      place?.setItem(name, value);
    } catch {
      // full: what is set lasts as long as the page
    }
  }
}

export const preferences = new Preferences();

/** Show a theme: "system", "light" or "dark". */
export function applyTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
