"""Answers that are compared with what is expected: equal, contained, or matched by a regular expression.

    {"question": "What is 6 x 7?", "expect": ["42", "forty-two"], "category": "arithmetic"}

with `template = "{question} Answer with the number alone."`. The model answers greedily. `extract` is a regular
expression whose first group, in its last match, is what is compared: the answer at the end of a chain of thought.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks.eval.intervals import Figure, share
from gemworks.eval.reading import Table, digest, filled, read_lines

MODES = ("exact", "contains", "regex")


@dataclass
class Match:
    """Questions and the answers that are right. chat: asked as a message, or as text to continue; None is as the model
    is."""

    name: str
    digest: str
    questions: list[dict[str, Any]]
    mode: str = "exact"
    ignore_case: bool = True
    extract: re.Pattern[str] | None = None
    chat: bool | None = None
    system: str | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    kind: str = "match"

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Match":
        """The task of a TOML file."""
        path, template = folder / table.take("data", str), table.take("template", str)
        told: dict[str, Any] = {"mode": table.take("mode", str, "exact")}
        if told["mode"] not in MODES:
            raise table.wrong(f"mode must be one of {', '.join(MODES)}, got {told['mode']}")
        extract = table.take("extract", str, None)
        told |= {"ignore_case": table.take("ignore_case", bool, True), "chat": table.take("chat", bool, None)}
        told |= {"system": table.take("system", str, None), "stop": tuple(table.texts("stop", []))}
        told["max_tokens"] = table.number("max_tokens", 256, 1)
        made_of = digest({"template": template, "extract": extract, **told}, path)
        pattern = None if extract is None else _compiled(extract, table, "extract")
        if pattern is not None and pattern.groups < 1:
            raise table.wrong("extract must have a group: what is in it is compared")
        questions = [_question(line, i, template, told["mode"]) for i, line in enumerate(read_lines(path))]
        return cls(name, made_of, questions, extract=pattern, **told)

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """The questions, in the file's order."""
        return self.questions

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin a question."""
        prompt: Any = item["prompt"]
        if llm.is_chat if self.chat is None else self.chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            prompt = [*system, {"role": "user", "content": prompt}]
        elif self.system:
            prompt = f"{self.system}\n\n{prompt}"
        stop = {"stop": self.stop} if self.stop else {}
        asked = llm.submit(llm.prepare(prompt, temperature=0.0, max_tokens=self.max_tokens, **stop))

        def finish() -> dict[str, Any]:
            text = asked.last().text
            found = self._extracted(text)
            right = found is not None and any(self._agrees(found, one) for one in item["expect"])
            return {"category": item["category"], "text": text, "compared": found, "right": right}

        return finish

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """The share that is right, and by category; with `extract` also how often it found something."""

        def right(of: Sequence[Mapping[str, Any]]) -> Figure:
            return share("right", sum(record["right"] for record in of), len(of))

        found = [right(records)]
        if self.extract is not None:
            found.append(share("extracted", sum(r["compared"] is not None for r in records), len(records)))
        categories = list(dict.fromkeys(str(record["category"]) for record in records))
        groups = {name: [right([r for r in records if r["category"] == name])] for name in categories}
        return found, groups if len(groups) > 1 else {}

    def _extracted(self, text: str) -> str | None:
        if self.extract is None:
            return text.strip()
        matches = list(self.extract.finditer(text))
        return (matches[-1][1] or "").strip() if matches else None

    def _agrees(self, found: str, expected: str) -> bool:
        if self.mode == "regex":
            return re.fullmatch(expected, found, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0)) is not None
        ours, theirs = (found.casefold(), expected.casefold()) if self.ignore_case else (found, expected)
        return theirs.strip() in ours if self.mode == "contains" else ours.strip() == theirs.strip()


def _question(line: Table, number: int, template: str, mode: str) -> dict[str, Any]:
    found = {"id": line.take("id", str, str(number)), "category": line.take("category", str, "all")}
    expect = line.texts("expect")
    if not expect or (mode == "contains" and not all(one.strip() for one in expect)):
        raise line.wrong("expect must be one text or more, none of them empty")
    if mode == "regex":
        for one in expect:
            _compiled(one, line, "expect")
    return found | {"expect": expect, "prompt": filled(template, line.all(), line.where)}


def _compiled(pattern: str, table: Table, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise table.wrong(f"{name} must be a regular expression: {error}") from error
