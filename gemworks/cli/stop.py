"""gemworks stop: let a running server take models out of memory."""

from typing import Annotated

import typer

from gemworks.cli import console


def stop(
    models: Annotated[list[str], typer.Argument(help="Names as `gemworks ps` shows them.")],
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of sentences.")] = False,
) -> None:
    """Take models out of a running server's memory; answers in progress are finished first."""
    from gemworks.server import client

    stopped = []
    for model in models:
        held = {_plain(one.get("name", "")): one for one in client.ask("GET", "/api/ps").get("models", [])}
        client.ask("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        users = (held.get(_plain(model)) or {}).get("users")
        stopped.append({"model": model, "was_loaded": _plain(model) in held, "users": users or 0})
        if not json:
            console.line(_told(model, _plain(model) in held, users or 0))
    if json:
        console.emit_json({"stopped": stopped})


def _told(model: str, was_loaded: bool, users: int) -> str:
    if not was_loaded:
        return f"{model} was not in memory."
    if users:
        return f"{model} leaves memory when {users} {'answer is' if users == 1 else 'answers are'} done."
    return f"{model} is out of memory."


def _plain(name: str) -> str:
    return name.removesuffix(":latest")
