// Light colour for code, a line at a time: comments, strings, numbers, keywords, names that are called.
//
// No grammar: a table of what begins a comment, a string and a word in each language. Wrong colours in a corner case
// are cheaper than a megabyte of grammars.

const words = (text) => new Set(text.split(" "));

const C_LIKE = { line: ["//"], block: [["/*", "*/"]], quotes: ['"', "'"] };
const HASH = { line: ["#"], block: [], quotes: ['"', "'"] };

const CONTROL = "if else for while do switch case default break continue return";
const LANGUAGES = {
  python: {
    ...HASH,
    long: ['"""', "'''"],
    words: words(
      "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return self True try while with yield",
    ),
  },
  javascript: {
    ...C_LIKE,
    long: ["`"],
    words: words(
      `${CONTROL} abstract any as async await boolean catch class const constructor debugger declare delete enum export extends false finally from function get implements import in instanceof interface keyof let namespace never new null number of private protected public readonly set static string super this throw true try type typeof undefined unknown var void yield`,
    ),
  },
  c: {
    ...C_LIKE,
    words: words(
      `${CONTROL} alignas auto bool catch char class concept const constexpr decltype delete double enum explicit extern false final float friend goto inline int long mutable namespace new noexcept nullptr operator override private protected public register short signed sizeof static static_assert struct template this throw true try typedef typename union unsigned using virtual void volatile #include #define #if #ifdef #ifndef #endif #else #pragma`,
    ),
  },
  java: {
    ...C_LIKE,
    long: ['"""'],
    words: words(
      `${CONTROL} abstract as async await base bool boolean byte catch char class companion const data decimal double enum event extends false final finally float foreach fun get implements import in init instanceof int interface internal is lateinit let long namespace new null object override package private protected public readonly record sealed set short static string super suspend synchronized this throw throws true try using val var virtual void volatile when where`,
    ),
  },
  go: {
    ...C_LIKE,
    long: ["`"],
    words: words(
      `${CONTROL} any bool byte chan const defer error fallthrough false float64 func go goto import int int64 interface iota make map nil package range rune select string struct true type uint var`,
    ),
  },
  rust: {
    ...C_LIKE,
    quotes: ['"'],
    words: words(
      "as async await bool break const continue crate dyn else enum extern f32 f64 false fn for i32 i64 if impl in let loop match mod move mut pub ref return self Self static str struct super trait true type u8 u32 u64 unsafe use usize where while",
    ),
  },
  swift: {
    ...C_LIKE,
    words: words(
      `${CONTROL} actor as async await catch class defer deinit enum extension false fileprivate func guard import in init inout internal is let nil override private protocol public repeat self Self static struct subscript super throw throws true try typealias var where`,
    ),
  },
  php: {
    ...C_LIKE,
    line: ["//", "#"],
    words: words(
      `${CONTROL} abstract and array as catch class const echo elseif extends false final finally fn foreach function global implements include instanceof interface match namespace new null or private protected public readonly require static this throw trait true try use var yield`,
    ),
  },
  ruby: {
    ...HASH,
    words: words(
      "alias and begin break case class def defined do else elsif end ensure extend false for if in include module next nil not or puts raise redo require rescue retry return self super then true undef unless until when while yield",
    ),
  },
  shell: {
    ...HASH,
    isShell: true,
    words: words(
      "alias case cd do done echo elif else esac eval exec exit export fi for function if in local read return set shift source sudo then trap unset until while",
    ),
  },
  sql: {
    line: ["--"],
    block: [["/*", "*/"]],
    quotes: ['"', "'"],
    anyCase: true,
    words: words(
      "add all alter and as asc begin between by case column commit constraint create cross database default delete desc distinct drop else end exists false foreign from full group having if in index inner insert into is join key left like limit not null offset on or order outer over partition primary references returning right rollback select set table then transaction true union unique update using values view when where with",
    ),
  },
  json: { line: ["//"], block: [], quotes: ['"'], words: words("true false null"), hasKeys: true },
  yaml: { ...HASH, words: words("true false null yes no on off"), hasKeys: true },
  css: { line: [], block: [["/*", "*/"]], quotes: ['"', "'"], words: words("!important"), hasKeys: true },
  markup: { line: [], block: [["<!--", "-->"]], quotes: [], words: words(""), isMarkup: true },
};

const ALIASES = {
  ...{ py: "python", python3: "python", pycon: "python", js: "javascript", jsx: "javascript", mjs: "javascript", ts: "javascript" },
  ...{ tsx: "javascript", typescript: "javascript", "c++": "c", cpp: "c", cc: "c", h: "c", hpp: "c", cuda: "c", objc: "c", glsl: "c" },
  ...{ cs: "java", csharp: "java", "c#": "java", kotlin: "java", kt: "java", scala: "java", dart: "java", groovy: "java" },
  ...{ golang: "go", rs: "rust", rb: "ruby", bash: "shell", sh: "shell", zsh: "shell", console: "shell", powershell: "shell" },
  ...{ dockerfile: "shell", docker: "shell", makefile: "shell", make: "shell", nix: "shell", r: "python", julia: "python" },
  ...{ elixir: "ruby", perl: "php", lua: "sql", haskell: "sql", postgres: "sql", postgresql: "sql", mysql: "sql", sqlite: "sql" },
  ...{ jsonc: "json", json5: "json", yml: "yaml", toml: "yaml", ini: "yaml", properties: "yaml", scss: "css", less: "css" },
  ...{ html: "markup", xml: "markup", svg: "markup", vue: "markup", xhtml: "markup" },
};

/** Return colour(line, state) -> [[[kind, text], ...], state]; kind "" is plain. The first state is null. */
export function highlighter(name) {
  if (name === "diff" || name === "patch") return diffLine;
  const key = Object.hasOwn(ALIASES, name) ? ALIASES[name] : name;
  if (!Object.hasOwn(LANGUAGES, key)) return (line) => [[["", line]], null];
  const language = LANGUAGES[key];
  return (line, state) => new LineReader(line, language).read(state);
}

function diffLine(line) {
  const kind = /^(@@|diff |index |\+\+\+|---)/.test(line) ? "meta" : line[0] === "+" ? "added" : line[0] === "-" ? "removed" : "";
  return [[[kind, line]], null];
}

class LineReader {
  constructor(line, language) {
    Object.assign(this, { line, language, pos: 0, tokens: [] });
  }

  add(kind, end) {
    const text = this.line.slice(this.pos, end);
    this.pos = end;
    if (!text) return;
    const last = this.tokens.at(-1);
    if (last && last[0] === kind) last[1] += text;
    else this.tokens.push([kind, text]);
  }

  /** Read the line from a state {kind, end} of the line before (inside a comment or long string) or null. */
  read(state) {
    let open = state;
    while (this.pos < this.line.length || open) {
      if (open) {
        const close = this.closing(open);
        if (close < 0) {
          this.add(open.kind, this.line.length);
          return [this.tokens, open];
        }
        this.add(open.kind, close);
        open = null;
      } else open = this.step();
    }
    return [this.tokens, null];
  }

  closing({ end, kind }) {
    for (let at = this.pos; at <= this.line.length - end.length; at++) {
      if (kind === "string" && this.line[at] === "\\") at++;
      else if (this.line.startsWith(end, at)) return at + end.length;
    }
    return -1;
  }

  /** Read one token; return {kind, end} where something opens that may run over lines. */
  step() {
    const { line, language, pos } = this;
    const starts = (mark) => line.startsWith(mark, pos);
    for (const [begin, end] of language.block) {
      if (starts(begin)) return this.begin("comment", begin, end);
    }
    for (const mark of language.long ?? []) if (starts(mark)) return this.begin("string", mark, mark);
    if (language.isMarkup) return this.markup();
    if (this.isComment()) return this.add("comment", line.length);
    if (language.quotes.includes(line[pos])) return this.string(line[pos]);
    const word = /^(?:[#!@]?[\p{L}_$][\p{L}\p{N}_$]*)/u.exec(line.slice(pos));
    if (word) return this.word(word[0]);
    const number = /^(?:0[xob][\da-f_]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\w*/i.exec(line.slice(pos));
    if (number) return this.add("number", pos + number[0].length);
    return this.add("", pos + 1);
  }

  isComment() {
    const { line, language, pos } = this;
    if (!language.line.some((mark) => line.startsWith(mark, pos))) return false;
    // "$#" and "a#b" are no comments of a shell, nor is "http://" one of JSON.
    return line[pos] !== "#" || pos === 0 || /\s/.test(line[pos - 1]);
  }

  begin(kind, mark, end) {
    this.add(kind, this.pos + mark.length);
    return { kind, end };
  }

  string(quote) {
    const end = this.pos + 1;
    let at = end;
    while (at < this.line.length && this.line[at] !== quote) at += this.line[at] === "\\" ? 2 : 1;
    const isKey = this.language.hasKeys && /^\s*:/.test(this.line.slice(at + 1));
    this.add(isKey ? "key" : "string", Math.min(at + 1, this.line.length));
    return null;
  }

  word(text) {
    const { language, pos } = this;
    const after = this.line.slice(pos + text.length);
    const name = language.anyCase ? text.toLowerCase() : text;
    let kind = "";
    if (language.hasKeys && /^[\w-]*\s*[:=]/.test(after) && /^[\s-]*$/.test(this.line.slice(0, pos))) {
      text += /^[\w-]*/.exec(after)[0];
      kind = "key";
    } else if (language.words.has(name) && this.line[pos - 1] !== ".") kind = "keyword";
    else if (/^\(/.test(after)) kind = "call";
    else if (text[0] === "@") kind = "call";
    else if (language.isShell && text[0] === "$") kind = "key";
    this.add(kind, pos + text.length);
    return null;
  }

  markup() {
    const { line, pos } = this;
    const tag = /^<\/?[\w:-]+|^\/?>/.exec(line.slice(pos));
    if (tag) return this.add("keyword", pos + tag[0].length);
    const attribute = /^([\w:-]+)(?==)/.exec(line.slice(pos));
    if (attribute) return this.add("key", pos + attribute[0].length);
    const value = line[pos - 1] === "=" && /^("[^"]*"|'[^']*')/.exec(line.slice(pos));
    if (value) return this.add("string", pos + value[0].length);
    const text = /^(?:[\w:-]+|.)/su.exec(line.slice(pos));
    return this.add("", pos + text[0].length);
  }
}
