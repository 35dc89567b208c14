"""Replicas on a Ray cluster: `serve run gemworks.cli.ray_app:app model=gemma3:1b replicas=2`.

    model=NAME[,NAME]  config=FILE.toml  replicas=2  cpus=N (cores of each)  gpus=N  quant= context= kv= max_sequences=

Every node must have what the names say (gemworks pull) and the files that the settings name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.errors import ConfigError

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.settings import Settings

_OWN = ("config", "replicas", "cpus", "gpus")
_SETTINGS = {
    "model": "models.names",
    "quant": "models.quant",
    "embed": "models.embed",
    "kv": "models.kv",
    "context": "models.context",
    "max_sequences": "models.max_sequences",
}
_NUMBERS = ("context", "max_sequences")
_LLM_OPTIONS = ("context", "quant", "embed", "kv", "max_sequences", "draft")


def app(arguments: Mapping[str, str]) -> Any:
    """Return the Ray Serve application that name=value arguments describe. Raises ConfigError."""
    from gemworks.server.ray_app import build
    from gemworks.server.settings_file import read_settings

    if unknown := sorted(set(arguments) - {*_OWN, *_SETTINGS}):
        known = ", ".join((*_SETTINGS, *_OWN))
        raise ConfigError(f"unknown argument {unknown[0]}=. Known: {known}.")
    options: dict[str, tuple[str, Any]] = {}
    for name, value in arguments.items():
        if name in _NUMBERS:
            options[_SETTINGS[name]] = f"{name}=", int(_number(name, value))
        elif name == "model":
            options[_SETTINGS[name]] = "model=", [one for one in value.split(",") if one]
        elif name in _SETTINGS:
            options[_SETTINGS[name]] = f"{name}=", value
    config = arguments.get("config")
    settings = read_settings(Path(config) if config else None, options)
    if not settings.models.names:
        raise ConfigError("there is nothing to serve. Name a model: model=gemma3:1b")
    return build(
        settings,
        load,
        replicas=int(_number("replicas", arguments.get("replicas", "2"))),
        cpus=_number("cpus", arguments.get("cpus", "1")),
        gpus=_number("gpus", arguments.get("gpus", "0")),
    )


def load(settings: "Settings") -> "Callable[[str], LLM]":
    """Return what loads a model by name in a replica, as the settings say."""
    options: dict[str, Any] = {name: getattr(settings.models, name) for name in _LLM_OPTIONS}

    def load_one(name: str) -> "LLM":
        from gemworks import LLM

        return LLM(name, **options)

    return load_one


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0:
        raise ConfigError(f'{name} must be a number of 0 or more, got "{text}".')
    return value
