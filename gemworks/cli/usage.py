"""gemworks usage: what every key has used of a server."""

import re
from pathlib import Path
from typing import Annotated

import typer

from gemworks import env
from gemworks.cli import console
from gemworks.errors import ConfigError


def usage(
    by: Annotated[str, typer.Option(metavar="WHAT", help="key, model, day, route, or several: key,day.")] = "key",
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Of this key only.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="From this day (UTC) on: 2026-01-31.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: usage.sqlite in $GEMWORKS_HOME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one array.")] = False,
) -> None:
    """Show requests, tokens and seconds by key, model or day. Works beside a running server, a second behind it."""
    from gemworks.server.usage import read_usage

    if since is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", since):
        raise ConfigError(f'--since must be a day such as 2026-01-31, got "{since}".')
    columns = [part.strip() for part in by.split(",") if part.strip()]
    rows = list(read_usage(file or env.home() / "usage.sqlite", columns, since=since, key=key))
    if json:
        console.emit_json(rows)
        return
    counts = ("requests", "failed", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens")
    table = [
        (
            *(row[column] or "(no key)" for column in columns),
            *(f"{row[count]:,}" for count in counts),
            f"{row['seconds']:,.1f}",
        )
        for row in rows
    ]
    headers = (*columns, "requests", "failed", "cancelled", "prompt", "cached", "answer tokens", "seconds")
    console.columns(headers, table, right=range(len(columns), len(headers)))
