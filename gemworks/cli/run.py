"""gemworks run: ask a model once, or talk to it."""

import contextlib
import select
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gemworks.cli import answer, console
from gemworks.cli.session import Content, Session
from gemworks.errors import ConfigError, RequestError, StorageError

if TYPE_CHECKING:
    from gemworks.cli.calling import Calling

_WAIT_NOTE_S = 2.0


_PanAndScan = Annotated[bool, typer.Option("--pan-and-scan", help="Read pictures far from square in crops too.")]


def run(
    model: Annotated[str, typer.Argument(help="tiny, gemma3:1b, org/repo, a directory, a .gguf file ...")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask. Without it: a conversation.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="How the model should behave.")] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A picture to show; repeatable.")] = None,
    pan_and_scan: _PanAndScan = False,
    video: Annotated[str | None, typer.Option(metavar="FILE", help="A video, of which some frames are read.")] = None,
    max_frames: Annotated[int | None, typer.Option(metavar="N", min=1, help="Frames of the video, 8.")] = None,
    sampling: Annotated[str | None, typer.Option(metavar="WAY", help="Which frames: uniform or scenes.")] = None,
    tools: Annotated[list[str] | None, typer.Option(metavar="FILE.py", help="Functions to call; repeatable.")] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Which calls run. Default: asks you.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run calls without asking, but those that rules deny.")] = False,
    readable: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Tools may read it; repeatable.")] = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Most rounds of calls, 8.")] = None,
    audit: Annotated[Path | None, typer.Option(metavar="FILE", help="Log of all calls that shows changes.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 always takes the likeliest word.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Draw from the K likeliest; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Draw from this share; 1 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(metavar="P", help="Leave out the unlikelier ones; 0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="The longest answer, in tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends the answer; repeatable.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(metavar="X", help="Above 1: fewer repeats.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(metavar="X", help="-2 to 2; 0 is off.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(metavar="X", help="-2 to 2; 0 is off.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    schema: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON schema of the answer.")] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="Prompt and answer together, in tokens.")] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="auto, bfloat16 or float32.")] = "auto",
    quant: Annotated[str | None, typer.Option(metavar="FORMAT", help="Quantize: int4-b32, int8 ...")] = None,
    embed: Annotated[str | None, typer.Option(metavar="FORMAT", help="The embedding's format, int8.")] = None,
    kv: Annotated[str | None, typer.Option(metavar="TYPE", help="Keys and values: bfloat16 or int8.")] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter, as PEFT saves it.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Times and rates, on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of text.")] = False,
) -> None:
    """Ask a model (a prompt, or text on stdin), or without a prompt talk to it."""
    flags = _Flags(temperature, top_k, top_p, min_p, seed, max_tokens, tuple(stop) if stop else None)
    penalties = _Penalties(repetition_penalty, presence_penalty, frequency_penalty)
    parameters = _checked(_given(flags) | _given(penalties))
    sights = _Sights(image or [], video, _given(_Frames(max_frames, sampling)), pan_and_scan)
    _check_together(raw=raw, system=system, sights=sights)
    form = _read_schema(schema) if schema else None
    _find(model)
    text = read_prompt(prompt)
    if text is None and (json or form):
        raise ConfigError(f"--{'json' if json else 'schema'} needs a prompt, as an argument or on stdin.")
    pictures = sights.read(model)  # what is wrong with them is told before seconds go into loading
    given = {"rules": rules, "yes": yes, "audit": audit, "readable": readable, "rounds": rounds}
    with _opened(tools, given, raw=raw, schema=schema) as calling:
        chosen = {"quant": quant, "embed": embed, "kv": kv, "adapter": adapter}
        weights = {"dtype": dtype} | {name: value for name, value in chosen.items() if value}
        session = open_session(model, weights=weights, context=context, system=system, raw=raw, parameters=parameters)
        session.pan_and_scan, session.queued, session.schema = sights.crops, pictures, form
        session.use(calling, "--tools")
        if text is None:
            _talk(session, model, weights, verbose)
        else:
            _answer(session, model, _seen(session, text, prompt), json=json, verbose=verbose)


def _check_together(*, raw: bool, system: str | None, sights: "_Sights") -> None:
    """Refuse options that need another, or exclude it."""
    if raw and system is not None:
        raise ConfigError("--system needs the chat template, and --raw leaves it out. Put the text into the prompt.")
    if sights.frames and sights.video is None:
        raise ConfigError("--max-frames and --sampling say which frames of a video are read: give them with --video.")


@contextlib.contextmanager
def _opened(
    tools: list[str] | None, given: dict[str, Any], *, raw: bool, schema: Path | None
) -> Iterator["Calling | None"]:
    """The tools of a command line, None where it names none; their servers end with the block."""
    given = {name: value for name, value in given.items() if value}
    if not tools:
        if given:
            raise ConfigError(f"--{next(iter(given))} is about tools: give some with --tools FILE.py.")
        yield None
        return
    if raw or schema:
        raise ConfigError(f"--tools goes without --{'raw' if raw else 'schema'}: calls have a form of their own.")
    from gemworks.cli.calling import Calling

    calling = Calling(**given)
    try:
        for one in tools:
            calling.add(one)
        calling.tell()
        yield calling
    finally:
        calling.close()


def _talk(session: Session, model: str, weights: dict[str, Any], verbose: bool) -> None:
    from gemworks.cli.repl import Repl

    if shown := sum(part["type"] == "image" for part in session.queued):
        console.note(f"{shown} {'pictures wait' if shown > 1 else 'picture waits'} for your first message.")
    repl = Repl(session, model, load=lambda name: open_session(_found(name), weights=weights), verbose=verbose)
    try:
        repl.loop()
    finally:
        repl.close()


def _seen(session: Session, text: str, words: list[str] | None) -> Content:
    """The prompt with the pictures that its words name; what was piped in is text whatever it names."""
    eyes = getattr(session.llm, "eyes", None)
    if words is None or session.raw or eyes is None:
        return text
    from gemworks.cli import images

    typed = " ".join(words)
    said = images.with_pictures(typed, eyes, session.pan_and_scan)
    rest = text[len(typed) :]
    if isinstance(said, str) or not rest.strip():
        return text if isinstance(said, str) else said
    return [*said, {"type": "text", "text": rest}]


class _Flags(NamedTuple):
    """How tokens are drawn, by the names of SamplingParams and `stop`; None where nothing was said."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    max_tokens: int | None
    stop: tuple[str, ...] | None


class _Penalties(NamedTuple):
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None


class _Frames(NamedTuple):
    max_frames: int | None
    sampling: str | None


def _given(flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags._asdict().items() if value is not None}


class _Sights(NamedTuple):
    """What a command line shows the model."""

    images: list[str]
    video: str | None
    frames: dict[str, Any]
    pan_and_scan: bool

    @property
    def crops(self) -> Any:
        """The rule of Pan & Scan, None without it."""
        from gemworks.media import PanAndScan

        return PanAndScan() if self.pan_and_scan else None

    def read(self, model: str) -> list[dict[str, Any]]:
        """Return the pictures and frames as parts of a message. Raises RequestError, for a text model too."""
        if not self.images and self.video is None:
            return []
        from gemworks.cli import images
        from gemworks.llm.eyes import no_eyes, open_eyes
        from gemworks.weights import hub

        eyes = open_eyes(hub.resolve(model).path)
        if eyes is None:
            raise no_eyes("--image" if self.images else "--video", model, "an image" if self.images else "a video")
        parts = [images.image_part(eyes, file, self.crops) for file in self.images]
        if self.video is not None:
            parts += images.video_parts(eyes, self.video, self.frames, self.crops)
        return parts


def _answer(session: Session, model: str, said: Content, *, json: bool, verbose: bool) -> None:
    calling = session.calling
    if calling is not None and not session.raw:
        completion = calling.last(session.ask(said)) if json else answer.stream(session.ask(said), calling.notice)
    elif json:
        *_, last = session.ask(said)
        completion = last.completion
    else:
        completion = answer.stream(session.ask(said))
    if json:
        told = answer.as_json(model, completion)
        console.emit_json(told if calling is None else told | {"calls": calling.log, "ended": calling.ended})
    if verbose:
        for row in answer.timing_lines(completion):
            console.note(row)
    if session.schema is not None:
        _ = completion.parsed  # raises for half an answer: nobody may take it for JSON


def _read_schema(path: Path) -> str:
    """The text of a schema that can be followed: what is wrong with it is told before seconds go into loading."""
    from gemworks.text.grammar import json_schema

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the schema must be readable, got {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: the schema must be UTF-8, and it is not.") from error
    json_schema(text, name=str(path))
    return text


def open_session(
    model: str,
    *,
    weights: Mapping[str, Any],
    context: int | None = None,
    system: str | None = None,
    raw: bool = False,
    parameters: dict[str, Any] | None = None,
) -> Session:
    """Load `model` with a bar on stderr and return a conversation with it.

    weights: dtype, quant, embed, kv and adapter of LLM.
    """
    from gemworks.weights import hub

    resolved = hub.resolve(model)
    created = resolved.modelfile
    context = context or (created.context if created else None)
    # Of a created model only the weights are loaded: its system prompt and parameters are the session's to change.
    llm = _load(str(resolved.path) if created else model, context=context, **weights)
    if not llm.is_chat and not raw:
        if system is not None:
            raise ConfigError(
                f"--system needs a chat model, and {model} is pre-trained: it continues text.\n"
                "Use the instruction-tuned model of the same size (its name ends in -it), or leave --system out."
            )
        console.note(f"{model} is pre-trained: it continues your text instead of answering it.")
    base = created.base if created else str(resolved.path.resolve()) if Path(model).expanduser().exists() else model
    return Session(llm, base=base, modelfile=created, parameters=parameters, system=system, raw=raw)


def read_prompt(words: list[str] | None) -> str | None:
    """The prompt from the arguments and stdin: both are joined by an empty line. None: there is none, so talk.

    Raises RequestError where a prompt was meant and is empty.
    """
    text = " ".join(words) if words is not None else None
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        piped = ""
        if text is None and not sys.stdout.isatty():
            raise RequestError("there is no prompt. Give one as an argument or on stdin.")
    else:
        piped = _read_stdin(with_prompt=text is not None).rstrip("\n")
        if text is None and not piped.strip():
            raise RequestError("the prompt on stdin is empty. Give one as an argument, or pipe some text in.")
    if text is not None and not text.strip() and not piped:
        raise RequestError("the prompt is empty. Leave it out to talk to the model.")
    return f"{text}\n\n{piped}" if text and piped else text or piped or None


def _read_stdin(*, with_prompt: bool) -> str:
    """All of stdin. With a prompt there already says after a while that it waits: a pipe may have been inherited."""
    if with_prompt and sys.platform != "win32":
        try:
            ready, _, _ = select.select([sys.stdin], [], [], _WAIT_NOTE_S)
        except (OSError, ValueError):  # not a real file, as under a test
            ready = True
        if not ready:
            console.note(
                "waiting for the end of stdin, which is added to the prompt (</dev/null if that is not wanted)"
            )
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError("the text on stdin must be UTF-8, and it is not.") from error


def _load(model: str, **options: Any):
    from gemworks import LLM

    with console.loading(f"loading {model}") as progress:
        packing = progress.named(f"packing {model}") if progress else None
        return LLM(model, progress=progress, packing=packing, **options)


def _found(model: str) -> str:
    """`model`, after offering to fetch it where it is not on this machine."""
    _find(model)
    return model


def _find(model: str) -> None:
    """Make sure `model` is on this machine, or raise ConfigError; in a terminal offers to fetch it, as Ollama does."""
    from gemworks.weights import hub, store

    try:
        hub.resolve(model)
    except ConfigError:
        repository = hub.repository_of(model)
        if repository is None or store.pulled_path(repository.id).is_dir() or not console.can_ask():
            raise
        if not console.confirm(f"{model} is not on this machine. Fetch {repository.id} now?", default=True):
            raise typer.Exit(1) from None
        from gemworks.cli.pull import fetch

        fetch(model)


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters`, after their ranges were checked: before seconds go into loading."""
    from gemworks.engine.types import SamplingParams

    SamplingParams(**{name: value for name, value in parameters.items() if name != "stop"})
    if not all(parameters.get("stop", ("-",))):
        raise RequestError("--stop must be a text of at least one character.")
    return parameters
