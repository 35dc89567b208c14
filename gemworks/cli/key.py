"""gemworks key: the API keys of a server."""

from pathlib import Path
from typing import Annotated

import typer

from gemworks import env
from gemworks.cli import console

app = typer.Typer(help="API keys of `gemworks serve --keys FILE`.", no_args_is_help=True)

_FILE = typer.Option("--keys", metavar="FILE", help="Default: keys.json in $GEMWORKS_HOME.")


def _file(given: Path | None) -> Path:
    return given or env.home() / "keys.json"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is: letters, digits and . _ - @")],
    keys: Annotated[Path | None, _FILE] = None,
    requests_per_minute: Annotated[int | None, typer.Option(metavar="N", help="Calls in any 60 seconds.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(metavar="N", help="Tokens in any 60 seconds.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Calls at the same time.")] = None,
    priority: Annotated[int, typer.Option(metavar="N", help="Each level doubles its share of the model.")] = 0,
    admin: Annotated[bool, typer.Option("--admin", help="May pull, create and delete models.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Make a key and show it, this once. A running server knows it within a second."""
    from gemworks.server.keys import add_key

    file = _file(keys)
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    made = add_key(file, name, priority=priority, is_admin=admin, **limits)
    if json:
        console.emit_json({"name": name, "key": made, "file": str(file)})
        return
    console.line(made)
    console.note(f"Keep it: only its hash is in {file}.")
    console.note(f"Start the server with: gemworks serve MODEL --keys {file}")


@app.command("list")
def list_(
    keys: Annotated[Path | None, _FILE] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one array.")] = False,
) -> None:
    """Show the keys' names and limits."""
    from gemworks.server.keys import read_keys

    file = _file(keys)
    rows = read_keys(file) if keys is not None or file.exists() else []
    if json:
        shown = ("name", "created", "requests_per_minute", "tokens_per_minute", "concurrency", "priority", "is_admin")
        console.emit_json([{field: getattr(row, field) for field in shown} for row in rows])
        return
    headers = ("name", "created", "requests/min", "tokens/min", "at once", "priority", "admin")
    table = [
        (
            row.name,
            row.created[:10],
            *(f"{n:,}" if n else "-" for n in (row.requests_per_minute, row.tokens_per_minute, row.concurrency)),
            str(row.priority),
            "yes" if row.is_admin else "",
        )
        for row in rows
    ]
    console.columns(headers, table, right=(2, 3, 4, 5))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    keys: Annotated[Path | None, _FILE] = None,
) -> None:
    """Remove a key. A running server refuses it within a second; calls it has begun are finished."""
    from gemworks.server.keys import revoke_key

    revoke_key(_file(keys), name)
    console.line(f"Revoked {name}.")
