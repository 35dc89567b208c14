"""gemworks list: what is on this machine."""

import time
from typing import Annotated

import typer

from gemworks.cli import console


def list_(json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False) -> None:
    """List the models on this machine: pulled, created, and the one inside the package."""
    from gemworks.weights import hub, store

    models = [
        {
            "name": hub.short_name(model.name),
            "kind": model.kind,
            "source": model.source,
            "path": str(model.path),
            "size_bytes": model.num_bytes,
            "modified_s": int(model.modified_s),
        }
        for model in [*store.list_pulled(), *store.list_created()]
    ]
    if hub.TINY.is_dir():
        files = [path for path in hub.TINY.iterdir() if path.is_file()]
        models.append(
            {
                "name": "tiny",
                "kind": "built-in",
                "source": "inside the package",
                "path": str(hub.TINY),
                "size_bytes": sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".gguf")),
                "modified_s": int(hub.TINY.stat().st_mtime),
            }
        )
    if json:
        console.emit_json({"models": models})
        return
    rows = [
        (
            model["name"],
            f"from {model['source']}" if model["kind"] == "created" else model["source"],
            "-" if model["kind"] == "created" else console.size(model["size_bytes"]),
            _age(time.time() - model["modified_s"]) if model["kind"] != "built-in" else "-",
        )
        for model in models
    ]
    console.columns(("NAME", "SOURCE", "SIZE", "MODIFIED"), rows, right=(2,))


def _age(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 60 else "a minute ago"
