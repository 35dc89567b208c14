"""gemworks create: a model of your own from a Modelfile."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError, GemworksError, StorageError


def create(
    name: Annotated[str, typer.Argument(help="What the new model is called: pirate, me/pirate:v2 ...")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The Modelfile; - is stdin.")] = Path("Modelfile"),
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a sentence.")] = False,
) -> None:
    """Create a model from a Modelfile: FROM, PARAMETER, SYSTEM, MESSAGE. The weights stay where they are."""
    from gemworks.weights.modelfile import parse_modelfile

    text, where, folder = _read(file)
    modelfile = parse_modelfile(text, where)
    path = save(name, modelfile, folder=folder, where=where)
    if modelfile.ignored:
        console.note(f"Not needed here and left out: {', '.join(dict.fromkeys(modelfile.ignored))}.")
    if json:
        console.emit_json({"name": name, "from": modelfile.base, "path": str(path)})
    else:
        console.line(f"Created {name} from {modelfile.base}. Try: gemworks run {name}")


def save(name: str, modelfile, *, folder: Path, where: str) -> Path:
    """Check a Modelfile completely and store it as `name`; returns its file. Nothing is written if anything is wrong.

    `folder` is what a relative FROM is relative to, `where` the file's name in messages.
    """
    from gemworks.weights import creating

    check_parameters(modelfile.parameters, where)
    return creating.save(name, modelfile, where=where, folder=folder)


def check_parameters(parameters, where: str) -> None:
    """Raise ConfigError for a value out of range. Names and kinds were checked when the file was read."""
    from gemworks.engine.types import SamplingParams

    for name, value in parameters.items():
        if name == "context":
            if value is None or value < 2:
                raise ConfigError(f"{where}: context must be at least 2 tokens, got {value}.")
        elif name != "stop":
            try:
                SamplingParams(**{name: value})
            except GemworksError as error:
                raise ConfigError(f"{where}: PARAMETER {error}") from error


def _read(file: Path) -> tuple[str, str, Path]:
    """(text, name for messages, folder) of a Modelfile."""
    if str(file) == "-":
        return sys.stdin.read(), "stdin", Path.cwd()
    try:
        return file.read_text(encoding="utf-8"), str(file), file.resolve().parent
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}.\nName a Modelfile with -f.") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{file} must be UTF-8 text to be a Modelfile, and it is not.") from error
