"""The chat page's files: how they are served, that they need nothing from elsewhere, and that they fit together."""

import gzip
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from gemworks.server import page

FOLDER = Path(page.__file__).parent / "page"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
MODULES = [path for path in FILES if path.suffix == ".js"]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def policy(client: TestClient) -> dict[str, list[str]]:
    """Directive -> its sources."""
    told = client.get("/").headers["content-security-policy"]
    return {part.split()[0]: part.split()[1:] for part in told.split(";")}


def test_the_policy_allows_own_files_and_nothing_else(client):
    rules = policy(client)
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == ["'self'"]
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["require-trusted-types-for"] == ["'script'"] and rules["trusted-types"] == ["'none'"]
    assert "unsafe" not in client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/favicon.ico", *(f"/page/{file.name}" for file in FILES)])
def test_every_file_is_served_with_its_type_and_guarded(client, path):
    answer = client.get(path, headers={"accept-encoding": "identity"})
    name = {"/": "index.html", "/favicon.ico": "icon.svg"}.get(path, path.rpartition("/")[2])
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(kinds[Path(name).suffix])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    if name != "index.html":
        assert answer.content == (FOLDER / name).read_bytes()


def test_a_known_file_is_not_sent_again(client):
    """Each encoding has a tag of its own, a weakened tag counts, and a stale one does not."""
    packed = client.get("/page/app.js", headers={"accept-encoding": "gzip"})
    plain = client.get("/page/app.js", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and packed.headers["etag"] != plain.headers["etag"]
    assert packed.text == plain.text and packed.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    for tag in (packed.headers["etag"], f'"x", W/{packed.headers["etag"]}', "*"):
        again = client.get("/page/app.js", headers={"accept-encoding": "gzip", "if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", packed.headers["etag"])
    stale = client.get("/page/app.js", headers={"accept-encoding": "gzip", "if-none-match": plain.headers["etag"]})
    assert stale.status_code == 200


def test_head_tells_what_get_would(client):
    """Ollama's clients ask HEAD / whether a server is there."""
    head, get = client.head("/"), client.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers} == {**get.headers}


@pytest.mark.parametrize(
    "name",
    ["nope.js", "..%2fpage.py", "%2e%2e/page.py", "page.py", "app.js%00", "a%00.js", "x" * 300 + ".js", "APP.JS"],
)
def test_nothing_else_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_preloads_every_module():
    content, packed, _ = page.asset("index.html")
    loaded = re.findall(rb'<link rel="modulepreload" href="page/([\w.]+)">', content)
    assert {name.decode() for name in loaded} | {"app.js", "theme.js"} == {module.name for module in MODULES}
    assert gzip.decompress(packed) == content


def test_modules_import_what_exists():
    """Every import names a file of the page and something that it exports; every file is imported by another."""
    imported = {"app.js", "theme.js"}
    for module in MODULES:
        for names, source in re.findall(r'^import \{([^}]*)\} from "([^"]+)";', text_of(module.name), re.MULTILINE):
            assert source.startswith("./"), f"{module.name}: {source}"
            imported.add(source[2:])
            exported = set(
                re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", text_of(source[2:]), re.MULTILINE)
            )
            wanted = {name.split(" as ")[0].strip() for name in names.split(",")}
            assert wanted <= exported, f"{module.name} imports {wanted - exported} from {source}"
    assert imported == {module.name for module in MODULES}


def test_elements_and_pictures_asked_for_exist():
    html = text_of("index.html")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for module in MODULES:
        asked = re.findall(r'\bbyId\("([^"]+)"\)', text_of(module.name))
        asked += [f"icon-{name}" for name in re.findall(r'\b(?:icon|iconButton)\("([^"]+)"', text_of(module.name))]
        assert set(asked) <= set(ids), f"{module.name}: {set(asked) - set(ids)}"
    assert set(re.findall(r'href="#(icon-[^"]+)"', html)) <= set(ids)


# What would make an answer's text markup or a script, or send something elsewhere.
FORBIDDEN = (
    *(
        r"innerHTML",
        r"outerHTML",
        r"insertAdjacentHTML",
        r"document\.write",
        r"\beval\(",
        r"new Function",
        r"DOMParser",
    ),
    *(
        r"createContextualFragment",
        r"setHTML",
        r"srcdoc",
        r"\bimport\(",
        r"set(?:Timeout|Interval)\([\"'`]",
        r"\.cookie",
    ),
    *(
        r"XMLHttpRequest",
        r"WebSocket",
        r"EventSource",
        r"sendBeacon",
        r"new Image\b",
        r"\bon\w+=\"",
        r"@import",
        r"\burl\(",
    ),
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_sources_hold_nothing_dangerous(file):
    text = text_of(file.name)
    found = [pattern for pattern in FORBIDDEN if re.search(pattern, text)]
    assert not found
    assert not re.findall(r"""["'(](?:https?:)?//[\w.]""", text.replace("http://www.w3.org/", "")), (
        "an address elsewhere"
    )
    assert text.isascii() and text.count("\n") <= 500
    assert not re.search(r"\sstyle=", text), "the policy refuses style attributes"


def test_one_place_makes_requests():
    """Only api.js fetches, and only relative addresses: below a proxy's path the page still works."""
    fetching = {module.name for module in MODULES if re.search(r"(?<!\.)\bfetch\(", text_of(module.name))}
    assert fetching == {"api.js"}
    assert set(re.findall(r'this\.fetch\("([^"]+)"', text_of("api.js"))) == {"v1/models", "v1/chat/completions"}
    assert not re.findall(r'(?:src|href)="/', text_of("index.html"))
