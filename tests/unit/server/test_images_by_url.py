"""Images by URL: only from hosts the owner named, at addresses that are public or named, within size, redirects too."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from gemworks.server import images
from gemworks.server.errors import FieldError, TooLargeError
from gemworks.server.images import image_part, picture
from gemworks.server.settings import LimitSettings, Settings

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self):
        self.asked.append((self.path, self.headers["host"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        data = {"/image.png": PNG, "/large.png": b"x" * 5000}.get(self.path)
        self.send_response(200 if data else 404)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url, *hosts, most=1000):
    settings = Settings(image_hosts=hosts, limits=LimitSettings(image_bytes=most))
    return asyncio.run(picture(url, "messages[0].content[0]", settings))


def refused(url, *hosts, code, kind=FieldError, **told):
    before = len(Handler.asked)
    with pytest.raises(kind) as error:
        fetch(url, *hosts, **told)
    assert error.value.param == "messages[0].content[0]"
    assert error.value.code == code, str(error.value)
    return len(Handler.asked) - before


def test_a_named_address_is_fetched(site):
    assert fetch(f"http://127.0.0.1:{site}/image.png", f"127.0.0.1:{site}") == PNG
    assert Handler.asked[-1] == ("/image.png", f"127.0.0.1:{site}")


@pytest.mark.parametrize("hosts", [(), ("example.com",), ("127.0.0.1",), ("127.0.0.1:1",), ("localhost",)])
def test_nothing_else_is_asked(site, hosts):
    assert refused(f"http://127.0.0.1:{site}/image.png", *hosts, code="image_host_not_allowed") == 0


def test_a_named_host_that_leads_inside_is_refused(site):
    """A name alone does not open this network: what it leads to must be public, or named as well."""
    url = f"http://localhost:{site}/image.png"
    assert refused(url, f"localhost:{site}", code="image_host_not_allowed") == 0
    assert fetch(url, f"localhost:{site}", f"127.0.0.1:{site}", f"[::1]:{site}") == PNG
    assert Handler.asked[-1][1] == f"localhost:{site}"


INSIDE = ("10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "127.1.1.1")
INSIDE_6 = ("::1", "fd00::1", "fe80::1%eth0", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "ff02::1")


@pytest.mark.parametrize("address", INSIDE + INSIDE_6)
def test_addresses_inside_are_refused_whatever_their_name(monkeypatch, address):
    async def lead(loop, host, port, **told):
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lead)
    refused("http://images.example.com/a.png", "images.example.com", code="image_host_not_allowed")


def test_a_redirect_is_checked_as_the_first_url(site):
    here = f"127.0.0.1:{site}"
    assert fetch(f"http://{here}/to//image.png", here) == PNG
    assert refused(f"http://{here}/to/http://localhost:{site}/image.png", here, code="image_host_not_allowed") == 1
    assert refused(f"http://{here}/to/file:///etc/passwd", here, code="invalid_image_url") == 1
    assert refused(f"http://{here}/to//to//to//to//to//image.png", here, code="image_unreachable") == 4


def test_sizes_and_failures_are_told(site):
    here = f"127.0.0.1:{site}"
    refused(f"http://{here}/large.png", here, code=None, kind=TooLargeError)
    refused("data:image/png;base64," + "A" * 2000, code=None, kind=TooLargeError)
    refused(f"http://{here}/missing.png", here, code="image_unreachable")
    refused("http://127.0.0.1:1/image.png", "127.0.0.1:1", code="image_unreachable")


@pytest.mark.parametrize(
    "url",
    ["/etc/passwd", "file:///etc/passwd", "ftp://example.com/a.png", "http://", "http://user@example.com/a", "x", ""],
)
def test_what_is_no_image_url_is_refused(url):
    refused(url, "example.com", code="invalid_image_url")


def test_a_part_holds_the_picture_and_its_detail():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}}
    told = asyncio.run(image_part(part, "here", Settings()))
    assert told == {"type": "image", "image": "data:image/png;base64,AAAA", "detail": "high"}
    with pytest.raises(FieldError):
        asyncio.run(image_part({"type": "input_image", "file_id": "file-1"}, "here", Settings()))
    assert images._MOST_REDIRECTS == 3
