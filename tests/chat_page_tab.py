"""A browser window for tests of the chat page: it knows every request made and every error written to the console."""

import io
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import expect

WAIT_MS = 60_000  # the machine may be busy; nothing here waits that long on a quiet one
expect.set_options(timeout=WAIT_MS)


class Tab:
    """One window with a storage of its own; knows every request made and every error written to the console."""

    def __init__(self, browser: Any, url: str, preferences: dict[str, Any] | None = None, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.context.set_default_timeout(WAIT_MS)
        if preferences:
            stored = json.dumps(json.dumps(preferences))
            self.context.add_init_script(f"localStorage.setItem('gemworks-preferences', {stored})")
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        self.page.on("dialog", lambda dialog: self.errors.append("a dialog") or dialog.dismiss())
        self.open("/")

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_selector("html[data-ready]")

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        self.wait_for_end()

    def wait_for_end(self) -> None:
        expect(self.page.locator(".answer").last).to_be_attached()
        expect(self.page.locator("#send")).to_have_attribute("aria-label", "Send")
        expect(self.page.locator(".streaming")).to_have_count(0)

    def close(self, *allowed: str) -> None:
        """End it: no errors but those `allowed`, and every request went to the server or nowhere."""
        self.context.close()
        told = [error for error in self.errors if not any(text in error for text in allowed)]
        assert not told, "\n".join(told)
        home = urlsplit(self.url).netloc
        assert self.asked
        assert [
            url for url in self.asked if urlsplit(url).scheme not in ("blob", "data") and urlsplit(url).netloc != home
        ] == []


def png(color: str = "red", size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return {"name": f"{color}.png", "mimeType": "image/png", "buffer": data.getvalue()}


def jpeg(size: tuple[int, int]) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", size, "green").save(data, "JPEG")
    return {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": data.getvalue()}


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_MS / 1000
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]
