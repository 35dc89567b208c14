"""/api/pull from a hub on this machine: progress, one fetch for all who ask, and what is kept when they go."""

import asyncio
import threading
from types import SimpleNamespace

import ollama
import pytest
from served_app import ServedApp

from gemworks.server.ollama.pull import _lines
from gemworks.weights import store
from gemworks.weights.hub import TINY


@pytest.fixture
def app(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.add("me/tiny", {path.name: path.read_bytes() for path in TINY.iterdir()})
    served = ServedApp(tmp_path)
    yield served
    served.close()


def fetched(hub) -> list[str]:
    return [path for _, path, _ in hub.requests if path.startswith("/cdn/")]


def test_progress_is_told_until_the_model_is_there(app, hub):
    size = len(hub.repos["me/tiny"].files["model.safetensors"])
    hub.bytes_per_second = size / 0.4
    first, *between, last = app.lines("/api/pull", model="me/tiny")
    assert first == {"status": "pulling manifest"}
    assert last == {"status": "success"}
    weights = [line for line in between if line["digest"] == "model.safetensors"]
    assert all(line["status"] == "pulling model.safetensors" and line["total"] == size for line in weights)
    told = [line["completed"] for line in weights]
    assert told == sorted(set(told))
    assert len(told) > 1
    assert told[-1] == size
    assert (store.pulled_path("me/tiny") / "model.safetensors").stat().st_size == size
    names = [model["name"] for model in app.ask("GET", "/api/tags").json()["models"]]
    assert "me/tiny:latest" in names
    assert app.post("/api/generate", model="me/tiny", prompt="Hi", stream=False)["done"]


def test_the_official_client_pulls(app):
    client = ollama.AsyncClient(host="http://127.0.0.1", transport=app.transport())

    async def pull():
        parts = [part async for part in await client.pull("me/tiny", stream=True)]
        again = await client.pull("me/tiny:latest")
        with pytest.raises(ollama.ResponseError, match="no repository me/missing"):
            await client.pull("me/missing")
        with pytest.raises(ollama.ResponseError, match="no repository me/missing"):
            [part async for part in await client.pull("me/missing", stream=True)]
        return parts, again

    parts, again = app.run(pull())
    assert parts[-1].status == "success"
    assert max(part.completed or 0 for part in parts) > 0
    assert again.status == "success"


def test_names_that_mean_nothing_are_told_so(app, hub):
    assert "no model named" in app.error("/api/pull", model="gemini:9000b", stream=False)
    assert "part of Gemworks" in app.error("/api/pull", model="tiny", stream=False)
    assert hub.requests == []


def watch(app):
    """A reader of one pull's progress, as the route makes it."""
    return _lines(SimpleNamespace(app=app.app), "me/tiny")


def test_all_who_ask_share_one_fetch(app, hub):
    hub.bytes_per_second = 4_000_000

    async def both():
        async def read(lines):
            return [line async for line in lines]

        return await asyncio.gather(read(watch(app)), read(watch(app)))

    first, second = app.run(both())
    assert first[-1] == second[-1] == {"status": "success"}
    assert len(fetched(hub)) == 1


def test_a_pull_ends_when_nobody_watches_it_and_goes_on_where_it_ended(app, hub, wait_for):
    size = len(hub.repos["me/tiny"].files["model.safetensors"])
    hub.bytes_per_second = size / 1.5

    async def leave_early():
        lines, other = watch(app), watch(app)
        async for line in lines:
            if line.get("digest") == "model.safetensors" and line["completed"]:
                break
        await anext(other)
        await lines.aclose()
        pulls = app.app.state.pulls
        [one] = pulls.values()
        assert not one._stopped.is_set()  # another still watches
        await other.aclose()
        with pytest.raises(Exception, match="stopped"):
            await one.ended
        await asyncio.sleep(0)
        assert pulls == {}

    app.run(leave_early())
    assert not store.pulled_path("me/tiny").exists()
    assert store.has_partial("me/tiny")
    hub.bytes_per_second = 0.0
    assert app.lines("/api/pull", model="me/tiny")[-1] == {"status": "success"}
    assert any(sent for sent in hub.sent_ranges("model.safetensors"))
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "pull"])
