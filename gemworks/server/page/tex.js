// Formulas as models write them (a small part of TeX) -> MathML nodes, which browsers draw themselves.
//
// What is not known here is not guessed: `texNode` returns null and the formula is shown as it was written.

const MAX_DEPTH = 30;
const MAX_LENGTH = 4000;

const split = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("=")));
const hex = (table) => Object.fromEntries(Object.entries(table).map(([name, code]) => [name, String.fromCodePoint(parseInt(code, 16))]));

// Letters: drawn as variables.
const LETTERS = hex(
  split(`alpha=3b1 beta=3b2 gamma=3b3 delta=3b4 epsilon=3f5 varepsilon=3b5 zeta=3b6 eta=3b7 theta=3b8 vartheta=3d1 iota=3b9
  kappa=3ba lambda=3bb mu=3bc nu=3bd xi=3be pi=3c0 rho=3c1 sigma=3c3 tau=3c4 upsilon=3c5 phi=3d5 varphi=3c6 chi=3c7 psi=3c8
  omega=3c9 Gamma=393 Delta=394 Theta=398 Lambda=39b Xi=39e Pi=3a0 Sigma=3a3 Phi=3a6 Psi=3a8 Omega=3a9 infty=221e ell=2113
  hbar=210f partial=2202 nabla=2207 emptyset=2205 varnothing=2205 Re=211c Im=2111 aleph=2135 prime=2032 degree=b0
  ldots=2026 cdots=22ef dots=2026 vdots=22ee ddots=22f1 angle=2220 triangle=25b3`),
);
const OPERATORS = hex(
  split(`times=d7 cdot=22c5 div=f7 pm=b1 mp=2213 ast=2217 star=22c6 circ=2218 bullet=2219 oplus=2295 otimes=2297 le=2264
  leq=2264 ge=2265 geq=2265 ne=2260 neq=2260 ll=226a gg=226b approx=2248 equiv=2261 cong=2245 sim=223c simeq=2243
  propto=221d in=2208 notin=2209 ni=220b subset=2282 subseteq=2286 supset=2283 supseteq=2287 cup=222a cap=2229 setminus=2216
  forall=2200 exists=2203 neg=ac lnot=ac land=2227 wedge=2227 lor=2228 vee=2228 to=2192 rightarrow=2192 leftarrow=2190
  gets=2190 Rightarrow=21d2 Leftarrow=21d0 implies=27f9 iff=27fa Leftrightarrow=21d4 leftrightarrow=2194 mapsto=21a6
  longrightarrow=27f6 uparrow=2191 downarrow=2193 perp=22a5 parallel=2225 mid=2223 vert=7c Vert=2016 langle=27e8
  rangle=27e9 lfloor=230a rfloor=230b lceil=2308 rceil=2309 lbrace=7b rbrace=7d therefore=2234 because=2235 colon=3a`),
);
// With limits below and above where the formula stands alone.
const LARGE = hex(split("sum=2211 prod=220f coprod=2210 bigcup=22c3 bigcap=22c2 bigoplus=2a01 bigwedge=22c0 bigvee=22c1"));
const INTEGRALS = hex(split("int=222b iint=222c iiint=222d oint=222e"));
const ACCENTS = hex(split("hat=5e widehat=5e bar=af overline=af vec=2192 dot=2d9 ddot=a8 tilde=7e widetilde=7e overrightarrow=2192"));
const NAMES = new Set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det dim ker deg gcd arg Pr".split(" "));
const LIMITS = new Set("lim max min sup inf limsup liminf argmax argmin".split(" "));
const SPACES = { ",": "0.17em", ":": "0.22em", ";": "0.28em", "!": "0em", " ": "0.33em", quad: "1em", qquad: "2em" };
const FENCES = { matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], vmatrix: ["|", "|"], Vmatrix: ["\u2016", "\u2016"] };
const ROWS = new Set(["aligned", "align", "align*", "gather", "gather*", "gathered", "split", "eqnarray", "equation", "equation*", "array"]);
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "nonumber", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr"]);
const DOUBLE = { C: "\u2102", H: "\u210d", N: "\u2115", P: "\u2119", Q: "\u211a", R: "\u211d", Z: "\u2124" };

/** Return a MathML node of a formula, or null where it holds what is not known here. */
export function texNode(text, isBlock) {
  if (text.length > MAX_LENGTH) return null;
  const parser = new TexParser(text, isBlock);
  try {
    const kids = parser.row(() => parser.isAtEnd);
    const words = node("annotation", [text], { encoding: "application/x-tex" });
    const semantics = node("semantics", [node("mrow", kids), words]);
    return node("math", [semantics], isBlock ? { display: "block" } : {});
  } catch (error) {
    if (error instanceof UnknownTex) return null;
    throw error;
  }
}

class UnknownTex extends Error {}

function node(tag, kids, attrs = {}) {
  return { tag, attrs, kids, isMath: true };
}

const operator = (text, attrs) => node("mo", [text], attrs);

class TexParser {
  constructor(text, isBlock) {
    this.tokens = text.match(/\\(?:[a-zA-Z]+\*?|[^a-zA-Z])|\d+(?:\.\d+)?|\s+|[^]/gu) ?? [];
    this.skip();
    this.at = 0;
    this.depth = 0;
    this.isBlock = isBlock;
  }

  get isAtEnd() {
    return this.at >= this.tokens.length;
  }

  get next() {
    return this.tokens[this.at];
  }

  take() {
    const token = this.takeRaw();
    this.skip();
    return token;
  }

  /** The next token, white space after it kept. */
  takeRaw() {
    if (this.isAtEnd) throw new UnknownTex();
    return this.tokens[this.at++];
  }

  /** White space means nothing, but in words. */
  skip() {
    while (this.tokens[this.at] !== undefined && !this.tokens[this.at].trim()) this.at++;
  }

  expect(token) {
    if (this.take() !== token) throw new UnknownTex();
  }

  /** Atoms with their scripts until `isOver()`. */
  row(isOver) {
    if (++this.depth > MAX_DEPTH) throw new UnknownTex();
    const found = [];
    while (!isOver()) {
      if (this.isAtEnd) throw new UnknownTex();
      const atom = this.atom();
      if (atom) found.push(this.scripts(atom));
    }
    this.depth--;
    return found;
  }

  scripts(base) {
    let [below, above] = [null, null];
    let primes = "";
    for (;;) {
      if (this.next === "_" && !below) (this.take(), (below = this.argument()));
      else if (this.next === "^" && !above) (this.take(), (above = this.argument()));
      else if (this.next === "'") (this.take(), (primes += "\u2032"));
      else break;
    }
    if (primes) above = above ? node("mrow", [operator(primes), above]) : operator(primes);
    if (!below && !above) return base;
    const isLimits = base.hasLimits && (this.isBlock || base.hasLimits === "always");
    if (below && above) return node(isLimits ? "munderover" : "msubsup", [base, below, above]);
    if (below) return node(isLimits ? "munder" : "msub", [base, below]);
    return node(isLimits ? "mover" : "msup", [base, above]);
  }

  /** What a command or script applies to: a group, or one atom. */
  argument() {
    if (++this.depth > MAX_DEPTH) throw new UnknownTex();
    const found = this.oneArgument();
    this.depth--;
    return found;
  }

  oneArgument() {
    if (this.next === "{") return this.group();
    // "x^12" is x to the 1, then 2.
    if (/^\d\d/.test(this.next ?? "")) {
      const digits = this.tokens[this.at];
      this.tokens[this.at] = digits.slice(1);
      return node("mn", [digits[0]]);
    }
    return this.atom() ?? node("mrow", []);
  }

  group() {
    this.expect("{");
    const kids = this.row(() => this.next === "}");
    this.expect("}");
    return kids.length === 1 ? kids[0] : node("mrow", kids);
  }

  /** The tokens of a group, white space among them: for \text and names. */
  words() {
    if (this.takeRaw() !== "{") throw new UnknownTex();
    const found = [];
    for (let depth = 1; ; ) {
      const token = this.takeRaw();
      if (token === "{") depth++;
      else if (token === "}" && --depth === 0) break;
      else found.push(token);
    }
    this.skip();
    return found;
  }

  atom() {
    if (this.next === "{") return this.group();
    const token = this.take();
    if (token[0] === "\\") return this.command(token.slice(1));
    if (/^[}&_^#%$]$/.test(token)) throw new UnknownTex();
    if (/^\d/.test(token)) return node("mn", [token]);
    if (/^\p{L}$/u.test(token)) return node("mi", [token]);
    if (token === "~") return space("0.33em");
    if (token === "|") return operator(token, { stretchy: "false", lspace: "0em", rspace: "0em" });
    if (/^[()[\]]$/.test(token)) return operator(token, { stretchy: "false" });
    return operator({ "-": "\u2212", "*": "\u2217" }[token] ?? token);
  }

  command(name) {
    if (Object.hasOwn(LETTERS, name)) return node("mi", [LETTERS[name]]);
    if (Object.hasOwn(OPERATORS, name)) return operator(OPERATORS[name]);
    if (Object.hasOwn(LARGE, name)) return Object.assign(operator(LARGE[name]), { hasLimits: "block" });
    if (Object.hasOwn(INTEGRALS, name)) return operator(INTEGRALS[name]);
    if (LIMITS.has(name)) return Object.assign(operator(name, { lspace: "0.17em", rspace: "0.17em" }), { hasLimits: "block" });
    if (NAMES.has(name)) return operator(name, { lspace: "0.17em", rspace: "0.17em" });
    if (Object.hasOwn(SPACES, name)) return space(SPACES[name]);
    if (Object.hasOwn(ACCENTS, name)) return node("mover", [this.argument(), operator(ACCENTS[name])], { accent: "true" });
    if (IGNORED.has(name)) return null;
    if (/^[{}|%$#&_]$/.test(name)) return operator(name === "|" ? "\u2016" : name, { stretchy: "false" });
    if (Object.hasOwn(TexParser.COMMANDS, name)) return TexParser.COMMANDS[name].call(this, name);
    throw new UnknownTex();
  }

  fraction() {
    return node("mfrac", [this.argument(), this.argument()]);
  }

  root() {
    if (this.next !== "[") return node("msqrt", [this.argument()]);
    this.take();
    const degree = node("mrow", this.row(() => this.next === "]"));
    this.expect("]");
    return node("mroot", [this.argument(), degree]);
  }

  text() {
    const words = this.words();
    if (words.some((word) => word[0] === "\\" && !/^\\[ ,{}%$&#_]$/.test(word))) throw new UnknownTex();
    // MathML trims its words; TeX does not.
    return node("mtext", [words.map((word) => (word[0] === "\\" ? word[1] : word)).join("").replace(/^\s+|\s+$/g, "\u00a0")]);
  }

  bold() {
    const at = (letter) => (letter < "a" ? 0x1d400 + letter.charCodeAt(0) - 65 : 0x1d41a + letter.charCodeAt(0) - 97);
    const bold = (word) => (/^[A-Za-z]$/.test(word) ? String.fromCodePoint(at(word)) : word);
    if (this.next !== "{") return this.argument();
    const start = this.at;
    const words = this.words();
    if (words.some((word) => !/^[A-Za-z0-9]+$/.test(word))) return ((this.at = start), this.group());
    return node("mi", [words.map(bold).join("")]);
  }

  double() {
    const words = this.next === "{" ? this.words() : [this.take()];
    if (!words.every((word) => Object.hasOwn(DOUBLE, word))) throw new UnknownTex();
    return node("mi", [words.map((word) => DOUBLE[word]).join("")]);
  }

  /** \left( ... \right): fences as tall as what they hold. */
  fenced() {
    const open = this.fence();
    const kids = this.row(() => this.next === "\\right");
    this.expect("\\right");
    const close = this.fence();
    return node("mrow", [open, ...kids, close].filter(Boolean));
  }

  fence() {
    const token = this.take();
    if (token === ".") return null;
    const name = token.slice(1);
    const text = token[0] !== "\\" ? token : name === "|" ? "\u2016" : /^[{}]$/.test(name) ? name : OPERATORS[name];
    if (!text || !/^[()[\]|{}<>/\u2016\u27e8\u27e9\u230a\u230b\u2308\u2309]$/u.test(text)) throw new UnknownTex();
    return operator({ "<": "\u27e8", ">": "\u27e9" }[text] ?? text, { stretchy: "true", fence: "true" });
  }

  /** \begin{pmatrix} a & b \\ c & d \end{pmatrix} and its kin. */
  environment() {
    const name = this.words().join("");
    if (name !== "cases" && !Object.hasOwn(FENCES, name) && !ROWS.has(name)) throw new UnknownTex();
    if (name === "array" && this.next === "{") this.words();
    const rows = [[]];
    for (;;) {
      const kids = this.row(() => this.next === "&" || this.next === "\\\\" || this.next === "\\end");
      rows.at(-1).push(node("mtd", kids));
      const token = this.take();
      if (token === "\\\\") rows.push([]);
      if (token === "\\end") break;
    }
    if (this.words().join("") !== name) throw new UnknownTex();
    const lines = rows.filter((cells) => cells.some((cell) => cell.kids.length)).map((cells) => node("mtr", cells));
    const side = name === "cases" ? "cases" : ROWS.has(name) && name !== "array" ? "aligned" : "matrix";
    const [open, close] = FENCES[name] ?? (name === "cases" ? ["{", ""] : ["", ""]);
    const tall = (text) => text && operator(text, { stretchy: "true", fence: "true" });
    return node("mrow", [tall(open), node("mtable", lines, { class: side }), tall(close)].filter(Boolean));
  }

  boxed() {
    return this.argument();
  }

  over() {
    const [above, base] = [this.argument(), this.argument()];
    return node("mover", [base, above]);
  }

  under() {
    const mark = operator("\u23df", { stretchy: "true" });
    return Object.assign(node("munder", [this.argument(), mark]), { hasLimits: "always" });
  }

  binomial() {
    const pair = node("mfrac", [this.argument(), this.argument()], { linethickness: "0" });
    const fence = (text) => operator(text, { stretchy: "true", fence: "true" });
    return node("mrow", [fence("("), pair, fence(")")]);
  }

  static COMMANDS = {
    frac: TexParser.prototype.fraction,
    dfrac: TexParser.prototype.fraction,
    tfrac: TexParser.prototype.fraction,
    binom: TexParser.prototype.binomial,
    sqrt: TexParser.prototype.root,
    text: TexParser.prototype.text,
    textbf: TexParser.prototype.text,
    textit: TexParser.prototype.text,
    mathrm: TexParser.prototype.text,
    operatorname: TexParser.prototype.text,
    mathit: TexParser.prototype.argument,
    mathcal: TexParser.prototype.argument,
    mathbf: TexParser.prototype.bold,
    boldsymbol: TexParser.prototype.bold,
    mathbb: TexParser.prototype.double,
    left: TexParser.prototype.fenced,
    begin: TexParser.prototype.environment,
    boxed: TexParser.prototype.boxed,
    underbrace: TexParser.prototype.under,
    overset: TexParser.prototype.over,
    stackrel: TexParser.prototype.over,
  };
}

function space(width) {
  return node("mspace", [], { width });
}
