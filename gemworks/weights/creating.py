"""Storing a created model: everything a Modelfile says is checked before anything is written.

Not here: whether parameters are in range, which the engine knows (cli/create.py, server/ollama/options.py).
"""

from collections.abc import Sequence
from pathlib import Path

from gemworks.errors import ConfigError, GemworksError
from gemworks.tokenizer.chat import is_gemma_template
from gemworks.weights import hub, store
from gemworks.weights.adapter_config import CONFIG, SOFT_PROMPT, LoraRecipe, check_files
from gemworks.weights.config_json import read_json
from gemworks.weights.modelfile import Modelfile


def save(name: str, modelfile: Modelfile, *, where: str, folder: Path | None = None) -> Path:
    """Check a Modelfile and store it as `name`; returns its file. Nothing is written if anything is wrong.

    `folder` is what a relative FROM is relative to (default: the working directory), `where` the file's name in
    messages. Raises ConfigError.
    """
    check_name(name)
    _check_template(modelfile.template, where)
    _check_messages(modelfile.messages, where)
    merged = hub.merged_base(modelfile, folder or Path.cwd())
    try:
        hub.resolve(merged.base)
    except ConfigError as error:
        raise ConfigError(f"{where}: FROM {modelfile.base}: {error}") from error
    if modelfile.adapter and merged.adapter:
        _check_adapter(Path(merged.adapter), where)
    return store.save_created(name, merged)


def check_name(name: str) -> None:
    """Raise ConfigError where `name` is a released model's."""
    family = hub.repository_of(name.removesuffix(":latest")) == hub.repository_of("gemma3")
    if name == "tiny" or family or ("/" not in name and hub.repository_of(name)):
        raise ConfigError(f'"{name}" is the name of a released model. Choose another name.')


def _check_adapter(path: Path, where: str) -> None:
    """Raise ConfigError unless the directory holds an adapter of a kind that can be run. Its shapes are the model's
    business, when it is loaded."""
    try:
        check_files(path)
        told = read_json(path / CONFIG)
        if told.get("peft_type") != SOFT_PROMPT:
            LoraRecipe.from_json(told, path / CONFIG)
    except GemworksError as error:
        raise ConfigError(f"{where}: ADAPTER: {error}") from error


def _check_template(template: str | None, where: str) -> None:
    if template is not None and not is_gemma_template(template):
        raise ConfigError(
            f"{where}: TEMPLATE must be Gemma's own chat template, and this one is another.\n"
            "Gemworks always renders chats as Gemma 3 was trained to read them: take the TEMPLATE lines out."
        )


def _check_messages(messages: Sequence[tuple[str, str]], where: str) -> None:
    spoken = [role for role, _ in messages if role != "system"]
    wanted = [("user", "assistant")[i % 2] for i in range(len(spoken))]
    if spoken != wanted or (messages and spoken[-1:] != ["assistant"]):
        raise ConfigError(
            f"{where}: MESSAGE lines must alternate user and assistant, beginning with user and ending with assistant, "
            f"got {', '.join(role for role, _ in messages)}."
        )
    if any(role == "system" for role, _ in messages):
        raise ConfigError(f"{where}: MESSAGE system is SYSTEM in Gemma's chats; write the text in a SYSTEM line.")
