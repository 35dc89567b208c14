"""gemworks list: what is on this machine."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gemworks.cli import console


def list_(json: Annotated[bool, typer.Option("--json", help="Print one object instead of a table.")] = False) -> None:
    """List the models on this machine: pulled, created, the one inside the package, and what was packed of them."""
    from gemworks.weights import hub, packed_store, store

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
        models.append(
            {
                "name": "tiny",
                "kind": "built-in",
                "source": "inside the package",
                "path": str(hub.TINY),
                "size_bytes": store.weight_file_bytes(hub.TINY),
                "modified_s": int(hub.TINY.stat().st_mtime),
            }
        )
    packed = [
        {
            "source": entry.source and str(entry.source),
            "plan": entry.plan,
            "path": str(entry.path),
            "size_bytes": entry.num_bytes,
            "used_s": int(entry.used_s),
        }
        for entry in packed_store.list_packed()
    ]
    if json:
        console.emit_json({"models": models, "packed": packed})
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
    if packed:
        names = {model["path"]: model["name"] for model in models}
        console.line()
        console.columns(("PACKED", "PLAN", "SIZE", "USED"), [_packed_row(entry, names) for entry in packed], right=(2,))


def _packed_row(entry: dict[str, Any], names: dict[str, str]) -> tuple[str, str, str, str]:
    """A line about a packed file; its model by name where `names` (path -> name) has it or the directory it lies in."""
    size, used = console.size(entry["size_bytes"]), _age(time.time() - entry["used_s"])
    if entry["source"] is None:
        return f"unusable: {entry['path']}", "-", size, used
    source = Path(entry["source"])
    name = names.get(str(source)) or names.get(str(source.parent)) or str(source)
    return name, entry["plan"], size, used


def _age(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 60 else "a minute ago"
