"""A conversation in the terminal. Line editing, history and completion are readline's.

    >>> Why is the sky blue?
    >>> /set parameter temperature 0.2

Triple quotes begin and end a message of several lines. Ctrl-C stops an answer or clears the line; Ctrl-D leaves.
"""

import contextlib
import gc
import glob
import os
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gemworks import env
from gemworks.cli import answer, console
from gemworks.cli.session import Content, Session
from gemworks.errors import ConfigError, GemworksError
from gemworks.weights.modelfile import PARAMETERS, parse_parameter, render_modelfile

try:
    import readline
except ImportError:  # not on Windows: the terminal's own line editing is used
    readline = None

_PROMPT, _MORE = ">>> ", "... "
_QUOTE = '"""'
_HISTORY_LINES = 1000

_HELP = """\
/set parameter NAME VALUE   change how answers are drawn; without a name lists them
/set system TEXT            how the model should behave; without a text: no longer
/set verbose, /set quiet    times and rates after every answer, or not
/set history                remember what you type; /set nohistory: do not
/show info                  what the model is
/show parameters            what was set
/show system                the system prompt
/show modelfile             this session as a Modelfile
/tools                      which functions the model may call; /tools FILE.py: these too; /tools none: none
/image FILE                 show the model a picture with your next message; /image none: do not
/clear                      forget the conversation
/save NAME                  keep model, parameters and system prompt under a name
/load NAME                  go on with another model
/bye, /exit                 leave (Ctrl-D too)
/?, /help                   this list

\"\"\" begins and ends a message of several lines. Ctrl-C stops an answer.
A picture's path in a message is the picture: what is on ./photo.jpg?"""

_WORDS = {
    "": ("/set", "/show", "/tools", "/image", "/clear", "/save", "/load", "/help", "/bye", "/exit", "/?"),
    "/set": ("parameter", "system", "verbose", "quiet", "history", "nohistory"),
    "/set parameter": tuple(parameter.name for parameter in PARAMETERS),
    "/show": ("info", "parameters", "system", "modelfile"),
}


class Repl:
    """Reads lines until told to leave. `load(name)` returns a Session of another model."""

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        load: Callable[[str], Session],
        verbose: bool = False,
        read_line: Callable[[str], str] = input,
    ):
        self.session, self.name = session, name
        self.verbose = verbose
        self._load, self._read_line = load, read_line
        self._history = _History()
        self._leaving = False

    def loop(self) -> None:
        """Talk until /bye or Ctrl-D."""
        console.note(f"{self.name}, {self.session.llm.context:,} tokens of context. /? for help, /bye to leave.")
        with self._history:
            while not self._leaving:
                try:
                    text, is_command = self._read()
                except EOFError:
                    console.line()
                    return
                except KeyboardInterrupt:
                    console.line()
                    console.note("Ctrl-D or /bye to leave.")
                    continue
                self._obey(text, is_command)

    def _obey(self, text: str, is_command: bool) -> None:
        try:
            if is_command:
                self._command(text)
            elif text.strip():
                self._ask(text)
        except GemworksError as error:
            console.error(str(error))
        except KeyboardInterrupt:  # while something other than an answer was going on
            console.line()

    def _read(self) -> tuple[str, bool]:
        """(text, whether it is a command). A message in triple quotes is never a command."""
        text = self._read_line(_PROMPT)
        head, quote, rest = text.partition(_QUOTE)
        head = head.strip()
        if not quote or head not in ("", "/set system"):
            return text.strip(), text.lstrip().startswith("/")
        while _QUOTE not in rest:
            rest += "\n" + self._read_line(_MORE)
        body = "".join(rest.split(_QUOTE, 1))
        return (f"{head} {body}", True) if head else (body, False)

    def _ask(self, text: str) -> None:
        said, calling = self.session.ask(self._seen(text)), None if self.session.raw else self.session.calling
        if calling is None:
            completion = answer.stream_until_interrupted(said)
        else:
            completion = answer.stream_until_interrupted(said, calling.notice, calling.stop.set)
        if completion is None:
            return
        if ending := answer.ending_note(completion, self.session.llm.context):
            console.note(ending + (" /clear begins anew." if "full" in ending else ""))
        if self.verbose:
            for row in answer.timing_lines(completion):
                console.note(row)
        console.line()

    def _seen(self, text: str) -> Content:
        """A message with the pictures that it names."""
        eyes = getattr(self.session.llm, "eyes", None)
        if eyes is None or self.session.raw:
            return text
        from gemworks.cli import images

        return images.with_pictures(text, eyes, self.session.pan_and_scan)

    def _begins_with_a_picture(self, text: str) -> bool:
        """Whether a line is no command but a path from the root: as a file that is dropped on the terminal."""
        from gemworks.cli import images

        return getattr(self.session.llm, "eyes", None) is not None and isinstance(images.split_paths(text)[0], Path)

    def _image(self, typed: str) -> None:
        """Queue the pictures of a line; one that cannot be read changes nothing."""
        from gemworks.cli import images
        from gemworks.llm.eyes import no_eyes

        queued = self.session.queued
        if not typed:
            raise ConfigError(
                f"/image needs a file, as in: /image photo.jpg ({len(queued)} waiting for your next message)"
            )
        if typed == "none":
            queued.clear()
            console.note("No picture waits for your next message.")
            return
        eyes = getattr(self.session.llm, "eyes", None)
        if eyes is None:
            raise no_eyes("/image", self.name)
        paths = images.files_of(typed)
        parts = [images.image_part(eyes, path, self.session.pan_and_scan) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            console.note(f"{images.told(part, eyes, str(path))} Your next message begins with it.")
        queued += parts

    def _command(self, text: str) -> None:
        verb, _, rest = text.partition(" ")
        rest = rest.strip()
        match verb:
            case "/bye" | "/exit":
                self._leaving = True
            case "/?" | "/help":
                console.line(_HELP)
            case "/set":
                self._set(rest)
            case "/show":
                self._show(rest)
            case "/tools":
                self._tools(rest)
            case "/image":
                self._image(rest)
            case "/clear":
                self.session.clear()
                console.note("The conversation is forgotten; system prompt and parameters stay.")
            case "/save":
                self._save(rest)
            case "/load":
                self._switch(rest)
            case _ if self._begins_with_a_picture(text):
                self._ask(text)
            case _:
                near = get_close_matches(verb, _WORDS[""], n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"there is no command {verb}.{hint} /? lists them.")

    def _tools(self, typed: str) -> None:
        """List the tools, open a file of them, or take all away."""
        from gemworks.cli.calling import Calling

        if typed == "none":
            self.close()
            console.note("The model may call no functions now.")
        elif typed:
            before = self.session.calling
            self.session.use(before or Calling(), "/tools")
            try:
                added = self.session.calling.add(typed)
            except GemworksError:
                self.session.calling = before
                raise
            console.note(f"The model may call {', '.join(added)} now.")
        elif self.session.calling is None:
            console.note("The model may call no functions. /tools FILE.py opens some.")
        else:
            console.columns(("name", "calls are", "what it does"), self.session.calling.rows())

    def close(self) -> None:
        """End what the tools have started."""
        if self.session.calling is not None:
            self.session.calling.close()
            self.session.calling = None

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        match what:
            case "parameter":
                self._set_parameter(value.strip())
            case "system":
                self.session.system = value or None
                console.note("The system prompt is set." if value else "There is no system prompt now.")
            case "verbose" | "quiet":
                self.verbose = what == "verbose"
                console.note(f"Times and rates are {'shown' if self.verbose else 'not shown'}.")
            case "history" | "nohistory":
                self._history.on = what == "history"
                console.note(f"What you type is {'remembered' if self._history.on else 'not remembered'}.")
            case _:
                raise ConfigError(f"/set takes {', '.join(_WORDS['/set'])}" + (f", got {what}." if what else "."))

    def _set_parameter(self, text: str) -> None:
        from gemworks.cli.create import check_parameters

        name, _, value = text.partition(" ")
        if not name:
            console.pairs([(p.name, p.help) for p in PARAMETERS])
            return
        if not value.strip():
            raise ConfigError(f"/set parameter {name} needs a value, as in: /set parameter temperature 0.7")
        ours, new = parse_parameter(name, value.strip())
        if ours == "stop":
            new = tuple(_words(value))
        check_parameters({ours: new}, "/set")
        self.session.parameters[ours] = new
        note = " It counts when the model is loaded: /save it, then /load it." if ours == "context" else ""
        console.note(f"{ours} is {_shown(new)} now.{note}")

    def _show(self, what: str) -> None:
        match what:
            case "info":
                from gemworks.cli.show import describe, rows
                from gemworks.weights.hub import resolve

                console.pairs(rows(describe(resolve(self.name))))
            case "parameters":
                found = [(name, _shown(value)) for name, value in self.session.parameters.items()]
                console.pairs(found) if found else console.note("Nothing is set; the model's own values count.")
            case "system":
                console.line(self.session.system) if self.session.system else console.note("There is no system prompt.")
            case "modelfile":
                console.write(render_modelfile(self.session.modelfile()))
            case _:
                raise ConfigError(f"/show takes {', '.join(_WORDS['/show'])}" + (f", got {what}." if what else "."))

    def _save(self, name: str) -> None:
        from gemworks.cli.create import save

        if not name:
            raise ConfigError("/save needs a name, as in: /save pirate")
        save(name, self.session.modelfile(), folder=Path.cwd(), where="/save")
        console.note(f"Saved. Talk to it with: gemworks run {name}")

    def _switch(self, name: str) -> None:
        """Load another model in the place of this one: two may not fit into memory, so the old one goes first."""
        from gemworks.weights.hub import resolve

        if not name:
            raise ConfigError("/load needs the name of a model, as in: /load gemma3:1b")
        resolve(name)  # a wrong name costs nothing
        before, parameters, system = self.name, self.session.parameters, self.session.system
        calling = self.session.calling
        del self.session
        gc.collect()
        try:
            self.session, self.name = self._load(name), name
        except BaseException:
            self._leaving = True  # if not even the old one loads again
            self.session = self._load(before)
            self.session.parameters, self.session.system = parameters, system
            self.session.calling = calling
            self._leaving = False
            console.note(f"Back with {before}; the conversation begins anew.")
            raise
        self.session.calling = calling
        console.note(f"Now with {name}. The conversation begins anew.")


class _History:
    """What was typed before, in a file only its owner may read. Nothing is kept without readline."""

    def __init__(self):
        self._path = env.home() / "history"
        self._on = True

    @property
    def on(self) -> bool:
        """Whether lines are remembered."""
        return self._on

    @on.setter
    def on(self, value: bool) -> None:
        self._on = value
        if readline is not None:
            readline.set_auto_history(value)

    def __enter__(self) -> "_History":
        if readline is not None:
            with contextlib.suppress(OSError):  # none yet, or not ours to read: begin empty
                readline.read_history_file(self._path)
            readline.set_history_length(_HISTORY_LINES)
            readline.set_auto_history(self._on)
            readline.set_completer(_complete)
            readline.set_completer_delims(" ")
            readline.parse_and_bind("tab: complete")
        return self

    def __exit__(self, *_exc: object) -> None:
        if readline is not None:
            with contextlib.suppress(OSError):  # a home that cannot be written must not spoil the goodbye
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
                readline.write_history_file(self._path)
            readline.set_completer(None)


def _complete(text: str, state: int) -> str | None:
    """readline's completer: commands, and what may follow them."""
    assert readline is not None
    before = readline.get_line_buffer()[: readline.get_begidx()].strip()
    if not (before or text).startswith("/"):
        return None
    if before in ("/image", "/tools"):
        found = [name + ("/" if os.path.isdir(name) else " ") for name in sorted(glob.glob(glob.escape(text) + "*"))]
    else:
        found = [word + " " for word in _WORDS.get(before, ()) if word.startswith(text)]
    return found[state] if state < len(found) else None


def _words(text: str) -> list[str]:
    """Several stop strings: quoted as in a shell, or one as it is."""
    try:
        return shlex.split(text)
    except ValueError:
        return [text.strip()]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(repr(one) for one in value)
    return "not limited" if value is None else str(value)
