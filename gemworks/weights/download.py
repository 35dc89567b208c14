"""Fetching a repository of the hub: resumable to the byte, checked against the hub's hashes, and never half there.

Files collect in <home>/models/.partial/<org>/<repo>/, each as .<name>.<id>.part until it is whole (fetch.py);
one rename makes the model. A killed pull is continued by the next one. huggingface_hub supplies addresses, tokens,
sessions and errors; its own snapshot download starts a file from zero after a kill (2.4), which for a shard of 5 GB is
too much to lose.

Not here: what names mean (hub.py), which model was wanted when several fit (`choose` asks).
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemworks import env
from gemworks.errors import ConfigError, DownloadError, StorageError
from gemworks.weights import hub, store
from gemworks.weights.fetch import TIMEOUT_S, Progress, RemoteFile, Source, fetch, matches, part_path
from gemworks.weights.hub import Repository
from gemworks.weights.hub_errors import explained

try:
    import fcntl
except ImportError:  # not on Windows: two pulls of one model at a time are then the user's to avoid
    fcntl = None

PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What `pull` did: where the model is and how many bytes came over the network (0: it was here already)."""

    path: Path
    repository: str
    fetched_bytes: int


def pull(
    name: str,
    *,
    endpoint: str | None = None,
    choose: Callable[[list[str]], str] | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Pulled:
    """Fetch the model `name` and return where it is; continues what an earlier pull left.

    choose(files) picks one of several GGUF files; without it they are an error that lists them. notify(text) hears of
    waiting. Raises ConfigError (not a name of the hub), DownloadError, StorageError.
    """
    repository = _target(name)
    endpoint = _checked_endpoint(endpoint or env.hub_endpoint() or PUBLIC_HUB)
    with explained(repository.id, name, endpoint):
        commit, listing = _list(repository.id, endpoint)
    files = wanted_files(listing, repository, choose)
    try:
        with _locked(repository.id, notify):
            source = Source(repository=repository.id, commit=commit, endpoint=endpoint, name=name)
            return _pull(source, files, progress or (lambda *_: None))
    except OSError as error:
        raise _storage_error(error) from error


def wanted_files(
    listing: Sequence[RemoteFile], repository: Repository, choose: Callable[[list[str]], str] | None = None
) -> list[RemoteFile]:
    """The files of a repository that loading needs: weights, configs, tokenizer. Never code, pickles or subfolders."""
    # A name from the network becomes a path: nothing but plain names of the top folder.
    plain = {file.name: file for file in listing if re.fullmatch(r"[\w-][\w.,+ -]*", file.name)}
    beside = [file for name, file in plain.items() if name.endswith((".json", ".jinja")) or name == "tokenizer.model"]
    weights = [file for name, file in plain.items() if name.endswith(".safetensors")]
    if weights and not repository.format:
        return sorted(weights + beside, key=lambda file: file.name)
    models = [name for name in hub.gguf_choices(list(plain), repository.format) if "-of-0" not in name]
    readable = [name for name in models if hub.is_readable(hub.format_of(name))]
    if not readable:
        raise DownloadError(_nothing_to_load(listing, repository, models))
    chosen = readable[0]
    if len(readable) > 1:
        if choose is None:
            names = "\n".join(f"  {name}" for name in readable[:20])
            raise DownloadError(
                f"{repository.id} has {len(readable)} GGUF files that load:\n{names}\n"
                f"Name the one to fetch, as in: gemworks pull {repository.id}:{hub.format_of(chosen)}"
            )
        chosen = choose(readable)
    return sorted([plain[chosen], *beside], key=lambda file: file.name)


def _target(name: str) -> Repository:
    if name == "tiny":
        raise ConfigError("tiny is part of Gemworks; there is nothing to fetch. Try it with: gemworks run tiny")
    if store.read_created(name):
        raise ConfigError(f"{name} is a model you created; pull the one it is made from. See: gemworks show {name}")
    hub.check_family(name)
    repository = hub.repository_of(name)
    if repository is None:
        sizes = ", ".join(f"gemma3:{size}" for size in hub.SIZES)
        raise ConfigError(
            f'no model named "{name}".{hub.suggestion(name)}\n'
            f"Known: {sizes}, each with -it, -pt and -it-qat; and any repository of the hub, as org/name."
        )
    return repository


def _checked_endpoint(endpoint: str) -> str:
    if not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f'the endpoint must be an address that begins with http:// or https://, got "{endpoint}".')
    return endpoint.rstrip("/")


def _list(repository: str, endpoint: str) -> tuple[str, list[RemoteFile]]:
    """(commit, files) of a repository's main branch."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=env.hub_token(), library_name="gemworks")
    info = api.model_info(repository, files_metadata=True, timeout=TIMEOUT_S)
    files = []
    for file in info.siblings or ():
        size = -1 if file.size is None else file.size
        files.append(RemoteFile(file.rfilename, size, (file.lfs.sha256 if file.lfs else file.blob_id) or ""))
    return info.sha or "main", files


def _pull(source: Source, files: list[RemoteFile], progress: Progress) -> Pulled:
    repository = source.repository
    folder, partial = store.pulled_path(repository), store.partial_path(repository)
    ids = {file.name: file.id for file in files}
    noted = store.read_manifest(folder).get("files", {})
    if all(noted.get(name) == id and (folder / name).is_file() for name, id in ids.items()):
        return Pulled(folder, repository, 0)
    partial.mkdir(parents=True, exist_ok=True)
    missing = []
    for file in files:
        if _is_there(file, partial, folder):
            progress(file.name, file.size, file.size)
        else:
            missing.append(file)
    _check_space(partial, missing, repository)
    fetched = fetch(source, missing, partial, progress)
    _publish(
        partial,
        folder,
        {"repository": repository, "commit": source.commit, "endpoint": source.endpoint, "files": ids},
    )
    return Pulled(folder, repository, fetched)


def _is_there(file: RemoteFile, partial: Path, folder: Path) -> bool:
    """True where an earlier pull fetched this very file. One that is part of the model already is linked."""
    if matches(partial / file.name, file):
        return True
    if matches(folder / file.name, file):
        with contextlib.suppress(OSError):  # a file system without links
            (partial / file.name).unlink(missing_ok=True)
            os.link(folder / file.name, partial / file.name)
            return True
    return False


def _check_space(partial: Path, missing: Sequence[RemoteFile], repository: str) -> None:
    parts = [part_path(partial, file) for file in missing]
    needed = sum(file.size for file in missing) - sum(part.stat().st_size for part in parts if part.is_file())
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise StorageError(
            f"{repository} needs {needed:,} more bytes, and the disk of {partial} has {free:,} bytes free.\n"
            "Free some room, or set GEMWORKS_HOME to a folder on another disk. What has been fetched is kept."
        )


def _publish(partial: Path, folder: Path, manifest: dict) -> None:
    """Give a finished pull its final name."""
    for leftover in partial.glob(".*.part"):
        leftover.unlink()
    ids = manifest["files"]
    for stray in partial.iterdir():  # of an older version of the repository
        if stray.name not in ids:
            stray.unlink()
    if folder.is_dir() and any(name.endswith(".gguf") for name in ids):
        # A second format beside the first: each file is whole and takes its place by itself.
        manifest["files"] = store.read_manifest(folder).get("files", {}) | ids
        for name in ids:
            os.replace(partial / name, folder / name)
        _write_manifest(folder, manifest)
        partial.rmdir()
    else:
        _write_manifest(partial, manifest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(old, ignore_errors=True)
        if folder.is_dir():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: another pull of the same owner
        partial.parent.rmdir()


def _write_manifest(folder: Path, manifest: dict) -> None:
    new = folder / f".{store.MANIFEST}.new"
    new.write_text(json.dumps(manifest | {"pulled_s": int(time.time())}, indent=1) + "\n", encoding="utf-8")
    os.replace(new, folder / store.MANIFEST)


@contextlib.contextmanager
def _locked(repository: str, notify: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock of a repository; the system lets go of it when this process ends, however it ends."""
    path = store.lock_path(repository)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if notify:
                    notify(f"another pull of {repository} is running; waiting for it")
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _nothing_to_load(listing: Sequence[RemoteFile], repository: Repository, models: Sequence[str]) -> str:
    if models:
        formats = ", ".join(sorted({hub.format_of(name) for name in models}))
        return (
            f"{repository.id} has GGUF files in {formats} only, which this release does not read.\n"
            "Formats that load: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K."
        )
    if repository.format:
        found = sorted({hub.format_of(file.name) for file in listing if file.name.endswith(".gguf")} - {""})
        return (
            f"{repository.id} has no GGUF file in {repository.format}. It has: {', '.join(found) or 'no GGUF files'}."
        )
    names = ", ".join(sorted(file.name for file in listing)[:10]) or "nothing"
    return f"{repository.id} must hold .safetensors or .gguf files to be loaded, and it holds: {names}."


def _storage_error(error: OSError) -> StorageError:
    where = error.filename or env.home()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk of {env.home()} is full. Free some room, or set GEMWORKS_HOME to a folder on another disk.\n"
            "What has been fetched is kept; pull again to go on."
        )
    return StorageError(
        f"{where} cannot be written: {error.strerror or error}.\n"
        "Set GEMWORKS_HOME to a folder you may write to, or mend the permissions."
    )
