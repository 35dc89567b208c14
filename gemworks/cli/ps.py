"""gemworks ps: the models that a running server has in memory."""

import time
from datetime import datetime
from typing import Annotated, Any

import typer

from gemworks.cli import console

# A time further away than this is how a server says "for ever".
_FOREVER_S = 20 * 365 * 86_400.0


def ps(json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False) -> None:
    """List the models that a running server holds in memory. GEMWORKS_HOST says which server."""
    from gemworks.server import client

    models = client.ask("GET", "/api/ps").get("models", [])
    if json:
        console.emit_json({"models": models})
        return
    rows = [row(model, time.time()) for model in models]
    console.columns(("NAME", "SIZE", "FORMAT", "CONTEXT", "UNTIL", "USERS"), rows, right=(1, 3, 5))


def row(model: dict[str, Any], now: float) -> tuple[str, ...]:
    """A model of /api/ps as the table shows it; `now` is seconds since 1970."""
    details = model.get("details") or {}
    users, context = model.get("users"), model.get("context_length")
    return (
        str(model.get("name", "")).removesuffix(":latest"),
        console.size(model.get("size") or 0),
        details.get("quantization_level") or "-",
        f"{context:,}" if context else "-",
        _until(model.get("expires_at"), users, now),
        "-" if users is None else str(users),
    )


def _until(expires_at: str | None, users: int | None, now: float) -> str:
    """When a model leaves memory if nobody uses it again."""
    if expires_at is None:
        return "-"
    seconds = datetime.fromisoformat(expires_at.replace("Z", "+00:00")).timestamp() - now
    if seconds > _FOREVER_S:
        return "for ever"
    if users:
        return "in use"
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} from now"
    return f"{seconds:.0f} seconds from now" if seconds >= 0 else "stopping"
