"""What the names of models mean, and where on this machine a name leads.

    gemma3:1b, gemma3:1b-it      google/gemma-3-1b-it           as Ollama's users say it; gemma3 alone is 4b
    gemma3:1b-pt                 google/gemma-3-1b-pt
    gemma3:4b-it-qat             google/gemma-3-4b-it-qat-q4_0-gguf
    gemma-3-1b-it                google/gemma-3-1b-it
    shieldgemma2                 google/shieldgemma-2-4b-it
    org/repo, hf.co/org/repo:Q8_0    any repository; after the colon which of its GGUF files
    tiny                         the demonstration model inside the package
    ./dir, model.gguf            a path
    pirate                       a model you created

Not here: fetching (download.py), the layout on disk (store.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from gemworks.errors import ConfigError, NotFoundError
from gemworks.weights import store
from gemworks.weights.modelfile import Modelfile

TINY = Path(__file__).parents[1] / "assets" / "tiny"

SIZES = ("270m", "1b", "4b", "12b", "27b")
_DEFAULT_SIZE = "4b"

# The GGUF formats that load, best first: what is taken when a repository has several files and nobody was asked.
_READABLE = ("Q4_0", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_K_S", "Q5_K_S", "BF16", "F16", "F32", "Q4_K", "Q5_K")

# Families a name may mean that this release does not run: said at once, not after gigabytes.
_NOT_YET = {
    "gemma3n": "this release runs Gemma 3 text models; Gemma 3n comes later.",
    "gemma-3n": "this release runs Gemma 3 text models; Gemma 3n comes later.",
    **dict.fromkeys(
        ("shieldgemma-2b", "shieldgemma-9b", "shieldgemma-27b"),
        "this is a Gemma 2 model that judges texts; this release judges images, with shieldgemma-2-4b-it.",
    ),
}

_REPOSITORY = re.compile(r"(?:https?://)?(?:hf\.co/|huggingface\.co/)?([\w.-]+/[\w.-]+?)(?::([\w.-]+))?/?")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, "org/name", and the format wanted of its GGUF files, or None."""

    id: str
    format: str | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a model is. `path` is a directory or a file; `modelfile` is set for created models."""

    path: Path
    name: str
    modelfile: Modelfile | None = None


def _google_names() -> dict[str, str]:
    """Every short name -> google's repository. Spec 15: which QAT forms exist."""
    names = {}
    for size in SIZES:
        base = f"google/gemma-3-{size}"
        chat, text = f"{base}-it", base if size == "270m" else f"{base}-pt"
        qat = "-qat-q4_0-unquantized" if size == "270m" else "-qat-q4_0-gguf"
        names |= {
            f"gemma3:{size}": chat,
            f"gemma3:{size}-it": chat,
            f"gemma3:{size}-pt": text,
            f"gemma3:{size}-it-qat": chat + qat,
            f"gemma3:{size}-pt-qat": f"{base}-pt{qat}",
            f"gemma3:{size}-it-qat-unquantized": f"{chat}-qat-q4_0-unquantized",
        }
    del names["gemma3:270m-pt-qat"]
    names |= dict.fromkeys(("shieldgemma2:4b", "shieldgemma2", "shieldgemma2:latest"), "google/shieldgemma-2-4b-it")
    names |= {"gemma3": names[f"gemma3:{_DEFAULT_SIZE}"], "gemma3:latest": names[f"gemma3:{_DEFAULT_SIZE}"]}
    return names | {repository.removeprefix("google/"): repository for repository in names.values()}


_NAMES = _google_names()


def check_family(name: str) -> None:
    """Raise ConfigError where `name` is of a family that this release does not run."""
    for family, reason in _NOT_YET.items():
        if family in name.lower():
            raise ConfigError(f"{name}: {reason}")


def repository_of(name: str) -> Repository | None:
    """The repository that `name` means, or None where it is not a name of the hub."""
    if known := _NAMES.get(name.lower()):
        return Repository(known)
    match = _REPOSITORY.fullmatch(name)
    if match is None or ".." in name:
        return None
    repository, format = match.groups()
    return Repository(_NAMES.get(repository.removeprefix("google/").lower(), repository), format and format.upper())


def short_name(repository: str) -> str:
    """How people say `repository`: gemma3:1b for google/gemma-3-1b-it, itself where there is nothing shorter."""
    return next((short for short, known in _NAMES.items() if known == repository and ":" in short), repository)


def released_size(name: str) -> str | None:
    """Which released size ("1b") `name` is, whether or not the model is here; None if it is none of them."""
    if name.lower() in SIZES:
        return name.lower()
    repository = repository_of(name)
    match = repository and re.fullmatch(r"google/gemma-3-(270m|1b|4b|12b|27b)(-.*)?", repository.id)
    return match.group(1) if match else None


def resolve(model: str | Path) -> ResolvedModel:
    """Return where a model is. Order: tiny, created models, paths, pulled models.

    Raises NotFoundError where nothing of that name is here; the message says how to get it, or the nearest name.
    """
    name = str(model)
    if name == "tiny" and isinstance(model, str):
        return ResolvedModel(TINY, "tiny")
    if isinstance(model, str) and (created := store.read_created(name)):
        return ResolvedModel(_base_path(created, name), name.removesuffix(":latest"), created)
    path = Path(name).expanduser()
    # A file beside us that happens to be called gemma3 is not meant; whatever else names a file is, and the loader says
    # what it must be (a GGUF pulled by hash has no suffix).
    is_meant = isinstance(model, Path) or len(path.parts) > 1 or path.suffix in (".gguf", ".safetensors", ".json")
    if path.is_dir() or (path.exists() and is_meant):
        return ResolvedModel(path, name)
    repository = None if isinstance(model, Path) else repository_of(name)
    if repository and (found := pulled(repository)):
        return ResolvedModel(found, name)
    check_family(name)
    raise NotFoundError(_not_here(name, repository))


def pulled(repository: Repository) -> Path | None:
    """The directory of a pulled repository, or its .gguf file; None if it is not here (in the wanted format)."""
    folder = store.pulled_path(repository.id)
    if not folder.is_dir():
        return None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        return None if repository.format else folder
    chosen = gguf_choices(files, repository.format)
    if len(chosen) > 1:
        raise ConfigError(
            f"{repository.id} has {len(chosen)} GGUF files here: {', '.join(chosen[:10])}.\n"
            f"Name the one to load, as in {repository.id}:{format_of(chosen[0])}."
        )
    return folder / chosen[0] if chosen else None


def gguf_choices(files: Sequence[str], format: str | None) -> list[str]:
    """The models among a repository's .gguf files (no vision parts), only those in `format` if given, best first."""
    models = [name for name in files if name.endswith(".gguf") and "mmproj" not in name.lower()]
    if format:
        return [name for name in models if format_of(name) == format.upper()]
    order = {known: place for place, known in enumerate(_READABLE)}
    return sorted(models, key=lambda name: (order.get(format_of(name), len(order)), name))


def format_of(file: str) -> str:
    """The format a GGUF file's name tells, in capitals as in Q4_0; empty if it tells none."""
    found = re.findall(r"(?<![a-z0-9])(I?Q\d_[a-z0-9_]+|BF16|F16|F32)(?![a-z0-9])", file.removesuffix(".gguf"), re.I)
    return found[-1].upper() if found else ""


def is_readable(format: str) -> bool:
    """True where GGUF files of this format load; a name that tells no format is given the benefit of the doubt."""
    return not format or format in _READABLE


def suggestion(name: str) -> str:
    """' Did you mean "gemma3:4b"?' for a name that is nearly one, else empty."""
    if name.lower() in _NAMES or name in _NAMES.values():
        return ""
    known = [*_NAMES, *_NAMES.values(), "tiny", *(model.name for model in store.list_created() + store.list_pulled())]
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return f' Did you mean "{near[0]}"?' if near else ""


def merged_base(modelfile: Modelfile, folder: Path) -> Modelfile:
    """`modelfile` on top of the created model its FROM names, if it names one; FROM and ADAPTER that are paths become
    absolute.

    `folder` is what a relative path is relative to. So no created model depends on another.
    """
    if modelfile.adapter:
        modelfile = replace(modelfile, adapter=str((folder / Path(modelfile.adapter).expanduser()).resolve()))
    if created := store.read_created(modelfile.base):
        return modelfile.over(created)
    path = folder / Path(modelfile.base).expanduser()
    if modelfile.base != "tiny" and path.exists():
        return modelfile.over(Modelfile(base=str(path.resolve())))
    return modelfile


def dependents(repository: str) -> list[str]:
    """Names of the created models that start from `repository`."""
    created = store.list_created()
    return [model.name for model in created if (base := repository_of(model.source)) and base.id == repository]


def _base_path(created: Modelfile, name: str) -> Path:
    try:
        return resolve(created.base).path
    except ConfigError as error:
        raise ConfigError(f"{name} is made from {created.base}. {error}") from error


def _not_here(name: str, repository: Repository | None) -> str:
    if name.startswith((".", "/", "~")) or name.endswith((".gguf", ".safetensors")):
        return f'there is no file or directory "{name}".'
    if repository is None:
        return f'no model named "{name}".{suggestion(name)}\nKnown: tiny, {", ".join(f"gemma3:{s}" for s in SIZES)}.'
    begun = " A pull of it was begun and not finished." if store.has_partial(repository.id) else ""
    return f"{name} is not on this machine.{suggestion(name)}{begun}\nFetch it with: gemworks pull {name}"
