"""gemworks serve: models over HTTP, for clients of OpenAI and Ollama."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.settings import Settings

_LLM_OPTIONS = ("context", "quant", "embed", "kv", "max_sequences", "draft")


def serve(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="tiny, gemma3:1b ...")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML with any setting; options win.")] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="To listen on: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="To listen on: 11434; 0 takes a free one.")] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="API keys, made by gemworks key add.")] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="Prompt and answer together, in tokens.")] = None,
    quant: Annotated[str | None, typer.Option(metavar="FORMAT", help="Quantize: int4-b32, int8 ...")] = None,
    kv: Annotated[str | None, typer.Option(metavar="TYPE", help="Keys and values: bfloat16 or int8.")] = None,
    max_sequences: Annotated[int | None, typer.Option(metavar="N", help="Answers computed together.")] = None,
    max_loaded: Annotated[int | None, typer.Option(metavar="N", help="Models in memory at once.")] = None,
    keep_alive: Annotated[float | None, typer.Option(metavar="S", help="Seconds others stay loaded unused.")] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="For HTTPS: PEM, with its chain.")] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", help="For HTTPS: PEM.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings, and leave.")] = False,
) -> None:
    """Serve models to OpenAI and Ollama clients, with a web page, keys, limits and metrics."""
    from gemworks.server.settings_file import read_settings

    options = {
        "models.names": ("MODEL", models or None),
        "host": ("--host", host),
        "port": ("--port", port),
        "keys_file": ("--keys", keys),
        "models.context": ("--context", context),
        "models.quant": ("--quant", quant),
        "models.kv": ("--kv", kv),
        "models.max_sequences": ("--max-sequences", max_sequences),
        "models.max_loaded": ("--max-loaded", max_loaded),
        "models.keep_alive_s": ("--keep-alive", keep_alive),
        "tls.certificate": ("--certificate", certificate),
        "tls.key": ("--private-key", private_key),
    }
    settings = read_settings(config, options)
    if dry_run:
        return _print_settings(settings)
    _check(settings)
    try:
        from gemworks.server.run import run
    except ImportError as error:
        raise ConfigError(
            f"gemworks serve needs {error.name}, which is not installed.\n"
            "Install it with: pip install 'gemworks[serve]'"
        ) from error
    if sys.stderr.isatty():
        _show_settings(settings)
    loading = _Loading(settings)
    run(
        settings,
        load=loading.load,
        warm=loading.warm,
        size=loading.size,
        announce=lambda line: _announce(line, settings, loading),
    )


def _check(settings: "Settings") -> None:
    """Say what is wrong with the settings before seconds go into loading, and warn of what is only unwise."""
    from gemworks.server.keys import read_keys
    from gemworks.weights import hub

    for name in settings.models.names:
        hub.resolve(name)
    if settings.tls.certificate is not None and settings.tls.key is not None:
        _check_certificate(settings.tls.certificate, settings.tls.key)
    if settings.keys_file is None:
        if not settings.is_loopback:
            console.warn(
                f"no API keys are used, and {settings.host} is reached from other machines: whoever can connect may "
                "use the models.\nMake a key with `gemworks key add NAME` and start with --keys FILE."
            )
    elif not read_keys(settings.keys_file):
        console.warn(f"{settings.keys_file} has no keys: every call will be refused. Add one: gemworks key add NAME")
    if not settings.models.names and not settings.models.any_local:
        raise ConfigError("there is nothing to serve. Name a model: gemworks serve gemma3:1b")


def _check_certificate(certificate: Path, key: Path) -> None:
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:  # SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"{certificate} and {key} must be a certificate and its private key in PEM: {why}."
        ) from error


class _Loading:
    """Loads and warms up models, with a bar on the screen until the server listens."""

    def __init__(self, settings: "Settings"):
        own = settings.models
        self._options: dict[str, Any] = {name: getattr(own, name) for name in _LLM_OPTIONS}
        self.is_shown = True

    def load(self, name: str) -> "LLM":
        """Load a model of this machine."""
        from gemworks import LLM

        if not self.is_shown:
            return LLM(name, **self._options)
        with console.loading(f"loading {name}") as progress:
            packing = progress.named(f"packing {name}") if progress else None
            return LLM(name, progress=progress, packing=packing, **self._options)

    def size(self, name: str) -> int:
        """Return the bytes that a model will take, before it is loaded."""
        from gemworks.llm.footprint import footprint

        return footprint(name, **self._options)

    def warm(self, name: str, llm: "LLM") -> None:
        """Compile what requests need."""
        with _counting(f"warming up {name}") as progress:
            llm.warm_up(progress)


def _announce(line: str, settings: "Settings", loading: _Loading) -> None:
    loading.is_shown = False
    console.line(line)
    sys.stdout.flush()
    if settings.is_loopback:
        console.note(
            "It listens on loopback: only programs of this machine can connect.\n"
            "To let others in: --host 0.0.0.0 --keys FILE (see gemworks key add)."
        )


def _print_settings(settings: "Settings") -> None:
    from gemworks.server.settings_file import resolved

    console.pairs([(name, value) for name, value, _ in resolved(settings)])


def _show_settings(settings: "Settings") -> None:
    """Draw all settings on stderr, those that are not the default in bold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gemworks.server.settings_file import resolved

    table = Table.grid(padding=(0, 3))
    for name, value, is_default in resolved(settings):
        style = "bright_black" if is_default else "bold"
        table.add_row(Text(name, style), Text(value, style))
    Console(stderr=True).print(table)


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Draw a bar of things done on stderr; yields progress(done, total), or None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield console.ProgressBar(bar, bar.add_task(f"[bright_black]{what}", total=None))
