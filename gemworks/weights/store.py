"""Where models live on this machine, and what is there.

    <home>/models/<org>/<repo>/           a pulled model: the hub's files, and manifest.json about where they are from
    <home>/models/.partial/<org>/<repo>/  a pull that is not finished; nothing outside `pull` looks here
    <home>/created/<name>.modelfile       a created model: a Modelfile whose FROM is not itself a created model

<home> is env.home(). A model is there exactly when its directory has its final name: pulling renames, once, at the end.

Not here: what names mean (hub.py).
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from gemworks import env
from gemworks.errors import ConfigError, GemworksError, StorageError
from gemworks.weights import atomic
from gemworks.weights.modelfile import Modelfile, parse_modelfile, render_modelfile

MANIFEST = "manifest.json"
_WEIGHTS = (".safetensors", ".gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(:[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredModel:
    """One model of this machine. `source` is the repository of a pulled model, the FROM of a created one."""

    name: str
    kind: Literal["pulled", "created"]
    source: str
    path: Path
    num_bytes: int  # of the weights for pulled models, of the Modelfile for created ones
    modified_s: float  # seconds since 1970


def pulled_path(repository: str) -> Path:
    """Where `repository` ("org/name") is, or would be, once it is pulled."""
    return env.home() / "models" / repository


def partial_path(repository: str) -> Path:
    """Where an unfinished pull of `repository` collects its files."""
    return env.home() / "models" / ".partial" / repository


def lock_path(repository: str) -> Path:
    """The file whose lock a pull of `repository` holds."""
    return env.home() / "models" / ".locks" / (repository.replace("/", "--") + ".lock")


def list_pulled() -> list[StoredModel]:
    """Every pulled model, by repository name."""
    models = env.home() / "models"
    try:
        folders = [repo for org in _visible(models) if org.is_dir() for repo in _visible(org) if repo.is_dir()]
    except OSError as error:
        raise StorageError(f"{models} cannot be read: {error.strerror}.") from error
    return [_pulled(f"{folder.parent.name}/{folder.name}", folder) for folder in folders]


def list_created() -> list[StoredModel]:
    """Every created model, by name."""
    folder = env.home() / "created"
    found = []
    for path in _visible(folder):
        if path.suffix == ".modelfile":
            name, status = unquote(path.stem), path.stat()
            try:
                source = parse_modelfile(_read(path), str(path)).base
            except GemworksError:  # edited by hand; `list` still works, and running it says what is wrong
                source = "(broken Modelfile)"
            found.append(
                StoredModel(
                    name=name,
                    kind="created",
                    source=source,
                    path=path,
                    num_bytes=status.st_size,
                    modified_s=status.st_mtime,
                )
            )
    return found


def read_manifest(folder: Path) -> dict:
    """What `pull` noted about a pulled model: repository, commit, endpoint and files. Empty if it is not there."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def created_exists(name: str) -> bool:
    """True where a created model of that name is, readable or not."""
    return bool(_NAME.fullmatch(name)) and _created_path(name).is_file()


def read_created(name: str) -> Modelfile | None:
    """The Modelfile of a created model, or None if there is none of that name. `name:latest` is `name`."""
    if not created_exists(name):
        return None
    path = _created_path(name)
    return parse_modelfile(_read(path), str(path))


def save_created(name: str, modelfile: Modelfile) -> Path:
    """Write a created model, replacing one of the same name; returns its file. Raises ConfigError for an odd name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f'a model\'s name must be letters, digits, ".", "-" and "_", with one "/" and one ":tag" if you like, '
            f'got "{name}".\nAn example: pirate, or me/pirate:v2.'
        )
    text = render_modelfile(modelfile).encode()
    path = _created_path(name)
    with atomic.replacing(path, needed=len(text), force=True) as partial:
        partial.write_bytes(text)
    return path


def remove_created(name: str) -> None:
    """Remove a created model that exists."""
    _remove(_created_path(name))


def remove_pulled(repository: str) -> int:
    """Remove a pulled model and what an unfinished pull of it left; return the bytes that were freed."""
    freed = 0
    for folder in (pulled_path(repository), partial_path(repository)):
        if folder.is_dir():
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _remove(folder)
    return freed


def has_partial(repository: str) -> bool:
    """True where a pull of `repository` began and did not finish."""
    return partial_path(repository).is_dir()


def weight_files(path: Path) -> list[Path]:
    """Return the files with weights of the model at `path`, a file or a directory, by name."""
    return [path] if path.is_file() else sorted(one for one in path.iterdir() if one.suffix in _WEIGHTS)


def weight_file_bytes(path: Path) -> int:
    """Return the bytes of a model's weights as they are on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def _pulled(repository: str, folder: Path) -> StoredModel:
    return StoredModel(
        name=repository,
        kind="pulled",
        source=repository,
        path=folder,
        num_bytes=weight_file_bytes(folder),
        modified_s=folder.stat().st_mtime,
    )


def _created_path(name: str) -> Path:
    # quote() keeps a name with "/" or ":" one file name on every system.
    return env.home() / "created" / (quote(name.removesuffix(":latest"), safe="") + ".modelfile")


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise StorageError(f"{path} cannot be read: {reason}.") from error


def _remove(path: Path) -> None:
    """Remove a file or a directory. A directory loses its name first, so that a kill leaves no half model."""
    try:
        if path.is_dir():
            going = path.with_name(f".{path.name}.removed")
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
            shutil.rmtree(going)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        else:
            path.unlink()
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}.") from error
