"""The models of this machine by the names that Ollama's clients see: with a tag, "latest" where there is no other."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.errors import ConfigError, GemworksError
from gemworks.server.ollama.facts import Facts, digest_of, facts_of, num_bytes
from gemworks.weights import hub, store
from gemworks.weights.modelfile import Modelfile

if TYPE_CHECKING:
    from gemworks.server.host import ModelHost

_LATEST = ":latest"
_FAMILY = "gemma3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One model. `name` is what Gemworks calls it. modified_s: seconds since 1970."""

    name: str
    path: Path
    modelfile: Modelfile | None
    modified_s: float

    @property
    def facts(self) -> Facts | None:
        """What its files say it is; None where they do not."""
        return facts_of(self.path)

    def row(self) -> dict[str, Any]:
        """The model as /api/tags and /api/ps list it."""
        name = tagged(self.name)
        told = {"name": name, "model": name, "size": num_bytes(self.path)}
        return told | {"digest": digest_of(self.path, self.modelfile), "details": details(self)}


def tagged(name: str) -> str:
    """Return a name as Ollama writes it: tiny:latest for tiny; a path as it is."""
    last = name.rsplit("/", 1)[-1]
    is_path = name.startswith((".", "/", "~")) or name.endswith(".gguf") or "\\" in name
    return name if is_path or ":" in last else name + _LATEST


def listed(host: "ModelHost", *, any_local: bool) -> list[Listed]:
    """Return the models that requests may name: those of the command line first."""
    found: dict[str, Listed] = {}
    for name in (*host.served(), *(_local_names() if any_local else ())):
        try:
            one = describe(name)
        except (GemworksError, OSError):  # gone, or half there: it cannot be asked, so it is not listed
            continue
        found.setdefault(tagged(one.name), one)
    return list(found.values())


def describe(held: str) -> Listed:
    """Return the model of a name that `ModelHost.resolve` gave. Raises ConfigError where it is gone."""
    resolved = hub.resolve(held)
    return Listed(
        name=resolved.name,
        path=resolved.path,
        modelfile=resolved.modelfile,
        modified_s=_modified(resolved.name, resolved.path),
    )


def details(model: Listed) -> dict[str, Any]:
    """Return what Ollama calls a model's details."""
    facts, created = model.facts, model.modelfile
    return {
        "parent_model": created.base if created else "",
        "format": facts.format if facts else "",
        "family": _FAMILY,
        "families": [_FAMILY],
        "parameter_size": facts.parameter_size if facts else "",
        "quantization_level": facts.level.upper() if facts else "",
    }


def capabilities(facts: Facts | None) -> list[str]:
    """Return what a model can, in Ollama's words."""
    tools = ["tools"] if facts is None or facts.is_chat else []
    return ["completion", *(["vision"] if facts is not None and facts.vision is not None else []), *tools]


def rfc3339(seconds: float) -> str:
    """Return a time (seconds since 1970) as Ollama writes it; what is further away than 9999 is that year's end."""
    if math.isinf(seconds) or seconds > 253_402_300_799:
        return "9999-12-31T23:59:59Z"
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _local_names() -> Iterator[str]:
    yield "tiny"
    for model in store.list_pulled():
        short = hub.short_name(model.name)
        files = hub.gguf_choices(sorted(file.name for file in model.path.glob("*.gguf")), None)
        if len(files) > 1:
            yield from (f"{model.name}:{hub.format_of(file)}" for file in files)
        else:
            yield short
    yield from (model.name for model in store.list_created())


def _modified(name: str, path: Path) -> float:
    created = next((model for model in store.list_created() if model.name == name), None)
    try:
        return created.modified_s if created else path.stat().st_mtime
    except OSError as error:
        raise ConfigError(f"{name} is gone: {error.strerror}.") from error
