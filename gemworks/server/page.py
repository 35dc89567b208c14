"""The chat page at `/`: plain files beside this module, served with a policy that allows no script but them.

The page uses the public routes (/v1/models, /v1/chat/completions) and nothing private. Its security is layered: the
Markdown of an answer is built from text nodes (page/markdown.js), `script-src 'self'` runs no script that an answer
could hold, Trusted Types make the browser refuse markup made from strings, and `img-src` loads no picture from
elsewhere.
Not here: who may ask (middleware.py); the files themselves hold no secret and need no key.
"""

import gzip
import hashlib
import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, HTTPException, Request, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Asked for again each time and answered with 304: an upgraded server never shows half of an old page.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_PRELOADS = re.compile(rb"<!-- preload:.*?-->\n")

router = APIRouter(include_in_schema=False)


def _folder() -> Traversable:
    return files("gemworks.server") / "page"


@cache
def names() -> frozenset[str]:
    """The files of the page. Only these are opened, whatever is asked for."""
    return frozenset(entry.name for entry in _folder().iterdir() if entry.name[entry.name.rfind(".") :] in _TYPES)


@cache
def asset(name: str) -> tuple[bytes, bytes, str]:
    """(content, gzipped content, entity tag) of a file of the page. Raises HTTPException (404)."""
    if name not in names():
        raise HTTPException(404, f'The chat page has no file "{name[:80]}".')
    content = (_folder() / name).read_bytes()
    if name == "index.html":
        modules = sorted(name for name in names() if name.endswith(".js"))
        links = [f'<link rel="modulepreload" href="page/{m}">\n' for m in modules if m not in ("theme.js", "app.js")]
        content = _PRELOADS.sub("".join(links).encode(), content)
    digest = hashlib.sha256(content).hexdigest()[:20]
    return content, gzip.compress(content, 9, mtime=0), digest


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page."""
    return _response(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def page_file(request: Request, name: str) -> Response:
    """A file of the page."""
    return _response(request, name)


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
def favicon(request: Request) -> Response:
    """The icon, for browsers that ask at the old address."""
    return _response(request, "icon.svg")


def _response(request: Request, name: str) -> Response:
    content, packed, digest = asset(name)
    is_packed = "gzip" in request.headers.get("accept-encoding", "")
    tag = f'"{digest}{"-gz" if is_packed else ""}"'
    headers = {**_HEADERS, "ETag": tag}
    known = {known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if is_packed:
        headers["Content-Encoding"] = "gzip"
    body = packed if is_packed else content
    if request.method == "HEAD":
        # Starlette would count an empty body.
        headers["Content-Length"] = str(len(body))
        body = b""
    return Response(body, headers=headers, media_type=_TYPES[name[name.rfind(".") :]])
