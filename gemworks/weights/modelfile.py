"""A Modelfile as Ollama's users write it: what a created model is made from, and how it answers.

    FROM gemma3:1b
    PARAMETER temperature 0.3
    SYSTEM Answer like a pirate.

Parameters are known by Ollama's names and by ours (num_predict is max_tokens). A file that `render_modelfile` wrote
uses Ollama's names, so Ollama reads it too.

Not here: whether a TEMPLATE is Gemma's and values are in range (cli/create.py); where the files live (store.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from gemworks.errors import ConfigError

Value = int | float | None | tuple[str, ...]


class Parameter(NamedTuple):
    """One thing a PARAMETER line or `/set parameter` can change. `name` is ours, `ollama` is how files write it."""

    name: str
    ollama: str
    kind: type
    help: str


PARAMETERS = (
    Parameter("temperature", "temperature", float, "how freely words are drawn; 0 always takes the likeliest"),
    Parameter("top_k", "top_k", int, "draw from the k likeliest words only; 0 is off"),
    Parameter("top_p", "top_p", float, "draw from the likeliest words that make up this share; 1 is off"),
    Parameter("min_p", "min_p", float, "leave out words less likely than this share of the likeliest; 0 is off"),
    Parameter("seed", "seed", int, "the same seed gives the same answer; -1 draws a fresh one"),
    Parameter("max_tokens", "num_predict", int, "the longest answer, in tokens; -1 is no limit"),
    Parameter("context", "num_ctx", int, "tokens of prompt and answer together; needs the model to be loaded again"),
    Parameter("stop", "stop", str, "text that ends the answer; may be given several times"),
    Parameter("repetition_penalty", "repeat_penalty", float, "above 1 makes words that were said already less likely"),
    Parameter("presence_penalty", "presence_penalty", float, "taken from words the answer contains already"),
    Parameter("frequency_penalty", "frequency_penalty", float, "taken for every time the answer contains a word"),
)
_BY_NAME = {name: parameter for parameter in PARAMETERS for name in (parameter.name, parameter.ollama)}

# -1 and -2 (until the context is full) are Ollama's ways to say "not limited" and "not fixed".
_NONE_BELOW_ZERO = ("seed", "max_tokens")

# Settings of the machine in Ollama's files. They change no word of an answer, so a file that has them still works.
_MACHINE_SETTINGS = frozenset(
    {"num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock"}
    | {"numa", "vocab_only", "logits_all"}
)

INSTRUCTIONS = ("FROM", "PARAMETER", "SYSTEM", "TEMPLATE", "MESSAGE", "LICENSE", "ADAPTER")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Modelfile:
    """What a created model is. `parameters` has our names, stop is a tuple; `ignored` names what changes nothing."""

    base: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    system: str | None = None
    template: str | None = None
    messages: tuple[tuple[str, str], ...] = ()  # (role, content): how every conversation begins
    licenses: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    adapter: str | None = None  # the directory of one

    @property
    def sampling(self) -> dict[str, Value]:
        """The parameters that LLM's methods take: all but the context."""
        return {name: value for name, value in self.parameters.items() if name != "context"}

    @property
    def context(self) -> int | None:
        """Tokens of context asked for, or None."""
        value = self.parameters.get("context")
        return value if isinstance(value, int) else None

    def over(self, base: "Modelfile") -> "Modelfile":
        """This file on top of `base`: what it does not say comes from there, and its FROM is base's.

        Raises ConfigError where both have an adapter: a model takes one.
        """
        if self.adapter and base.adapter:
            raise ConfigError(
                f"{self.base} has an adapter already ({base.adapter}), and a model takes one.\n"
                "Merge that one into its model first, or start FROM the model without it."
            )
        return Modelfile(
            base=base.base,
            parameters={**base.parameters, **self.parameters},
            system=base.system if self.system is None else self.system,
            template=self.template or base.template,
            messages=self.messages or base.messages,
            licenses=base.licenses + self.licenses,
            ignored=self.ignored,
            adapter=self.adapter or base.adapter,
        )


def parse_parameter(name: str, text: str) -> tuple[str, Value]:
    """Return (our name, value) of one parameter; a stop string comes as a tuple of one.

    Raises ConfigError for an unknown name, with the nearest one, or a value of the wrong kind.
    """
    parameter = _BY_NAME.get(name.lower())
    if parameter is None:
        near = get_close_matches(name.lower(), _BY_NAME, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ConfigError(
            f'there is no parameter "{name}".{hint}\nKnown: {", ".join(known.name for known in PARAMETERS)}.'
        )
    if parameter.kind is str:
        return parameter.name, (text,)
    try:
        value = parameter.kind(text)
    except ValueError as error:
        wanted = "a whole number" if parameter.kind is int else "a number"
        raise ConfigError(f'{name} must be {wanted}, got "{text}".') from error
    return parameter.name, None if parameter.name in _NONE_BELOW_ZERO and value < 0 else value


def parse_modelfile(text: str, where: str = "Modelfile") -> Modelfile:
    """Return what a Modelfile says. `where` is its name in messages, which carry the line of what is wrong."""
    found: dict[str, list[str]] = {}
    parameters: dict[str, Value] = {}
    messages: list[tuple[str, str]] = []
    ignored: list[str] = []
    for line, keyword, argument in _instructions(text, where):
        try:
            _check(keyword, argument, found)
            if keyword == "PARAMETER":
                _add_parameter(argument, parameters, ignored)
            elif keyword == "MESSAGE":
                messages.append(_message(argument))
            else:
                found.setdefault(keyword, []).append(_unquoted(argument))
        except ConfigError as error:
            raise ConfigError(f"{where}:{line}: {error}") from error
    if "FROM" not in found:
        raise ConfigError(
            f"{where}: a Modelfile needs a FROM line, and this one has none.\n"
            "Begin it with the model to start from, as in: FROM gemma3:1b"
        )
    return Modelfile(
        base=found["FROM"][0],
        parameters=parameters,
        system=found.get("SYSTEM", [None])[-1],
        template=found.get("TEMPLATE", [None])[-1],
        messages=tuple(messages),
        licenses=tuple(found.get("LICENSE", ())),
        ignored=tuple(ignored),
        adapter=found.get("ADAPTER", [None])[-1],
    )


def render_modelfile(modelfile: Modelfile) -> str:
    """Return the text of a Modelfile that parses to `modelfile` (without what was ignored)."""
    lines = [f"FROM {modelfile.base}"]
    if modelfile.adapter is not None:
        lines.append(f"ADAPTER {_quoted(modelfile.adapter)}")
    for parameter in PARAMETERS:
        if parameter.name in modelfile.parameters:
            value = modelfile.parameters[parameter.name]
            values: Sequence = value if isinstance(value, tuple) else (-1 if value is None else value,)
            lines += [f"PARAMETER {parameter.ollama} {_quoted(one)}" for one in values]
    if modelfile.system is not None:
        lines.append(f"SYSTEM {_quoted(modelfile.system)}")
    if modelfile.template is not None:
        lines.append(f"TEMPLATE {_quoted(modelfile.template)}")
    lines += [f"MESSAGE {role} {_quoted(content)}" for role, content in modelfile.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in modelfile.licenses]
    return "\n".join(lines) + "\n"


def _check(keyword: str, argument: str, found: Mapping[str, list[str]]) -> None:
    if keyword not in INSTRUCTIONS:
        near = get_close_matches(keyword, INSTRUCTIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no instruction {keyword}.{hint}\nKnown: {', '.join(INSTRUCTIONS)}.")
    if keyword == "ADAPTER" and found.get("ADAPTER"):
        raise ConfigError(f"a model takes one adapter, and this is the second (the first: {found['ADAPTER'][0]}).")
    if keyword == "FROM" and found.get("FROM"):
        raise ConfigError(f"a Modelfile has one FROM line, and this is the second (the first: {found['FROM'][0]}).")
    if not argument.strip():
        raise ConfigError(f"{keyword} needs a value, and nothing follows it.")


def _add_parameter(argument: str, parameters: dict[str, Value], ignored: list[str]) -> None:
    name, text = _first_word(argument)
    text = _unquoted(text)
    if name.lower() in _MACHINE_SETTINGS:
        ignored.append(name)
        return
    if not text:
        raise ConfigError(f'PARAMETER needs a name and a value, got "{argument}".')
    ours, value = parse_parameter(name, text)
    before = parameters.get(ours, ())
    parameters[ours] = before + value if isinstance(value, tuple) and isinstance(before, tuple) else value


def _message(argument: str) -> tuple[str, str]:
    role, content = _first_word(argument)
    if role.lower() not in _ROLES or not content:
        raise ConfigError(f'MESSAGE needs one of {", ".join(_ROLES)} and a text, got "{argument}".')
    return role.lower(), _unquoted(content)


def _first_word(text: str) -> tuple[str, str]:
    word, *rest = text.split(None, 1)
    return word, rest[0] if rest else ""


def _instructions(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, KEYWORD, argument as written) of every instruction; a triple quote runs over lines."""
    lines = iter(enumerate(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"), 1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        keyword, argument = _first_word(line.strip())
        while argument.count('"""') == 1:
            _, more = next(lines, (0, None))
            if more is None:
                raise ConfigError(f'{where}:{number}: the """ that begins here is never closed.')
            argument += "\n" + more
        yield number, keyword.upper(), argument.strip()


def _unquoted(text: str) -> str:
    if len(text) >= 6 and text.startswith('"""') and text.endswith('"""'):
        return text[3:-3]
    if len(text) >= 2 and text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    return text


def _quoted(value: object) -> str:
    """`value` as one argument that reads back the same."""
    text = str(value)
    if '"""' in text:
        raise ConfigError('a Modelfile cannot hold a text that contains """; take it out.')
    plain = text and text == text.strip() and "\n" not in text and not text.startswith('"')
    return text if plain else f'"""{text}"""'
