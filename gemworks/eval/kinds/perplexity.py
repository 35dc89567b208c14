"""Perplexity and bits per byte of texts, one by one.

    perplexity = exp(sum of nats / number of tokens)       bits per byte = sum of nats / ln 2 / number of UTF-8 bytes

Perplexities compare only between models of one tokenizer; bits per byte always. Each text is scored from its first
token on, after BOS; BOS itself is not counted. A text longer than the window is read in windows that overlap: each
scores the `stride` tokens that no window before has, after as many as there is room for. A smaller stride gives every
token more to look back at, and costs more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError
from gemworks.eval.intervals import Figure, ratio
from gemworks.eval.reading import Table, digest, read_bytes, read_lines


@dataclass
class Perplexity:
    """The texts of files. window, stride: in tokens, BOS included; None is the model's context, and half of it."""

    name: str
    digest: str
    texts: list[dict[str, Any]]
    window: int | None = None
    stride: int | None = None
    kind: str = "perplexity"

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Perplexity":
        """The task of a TOML file: data (JSON Lines with `text`, or one whole text file), window, stride."""
        path = folder / table.take("data", str)
        window, stride = table.number("window", 0, 0), table.number("stride", 0, 0)
        if window == 1 or stride >= max(window, 1) > 1:
            raise table.wrong(f"window must be 2 tokens or more and stride less, got {window} and {stride}")
        made_of = digest({"window": window, "stride": stride}, path)
        return cls(name, made_of, _texts(path), window or None, stride or None)

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """The texts, in the file's order."""
        return self.texts

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin a text: a request for each window."""
        window = min(self.window or llm.context, llm.context)
        stride = min(self.stride or window // 2, window - 1)
        ids = [llm.tokenizer.bos_id, *llm.tokenizer.encode(item["text"])]
        asked = []
        for start, first, end in windows(len(ids), window, stride):
            request = llm.prepare(ids[start:end], kind="score", score_from=first - start)
            asked.append((llm.submit(request), first - start))

        def finish() -> dict[str, Any]:
            scores = [score.logprob for one, first in asked for score in one.finish().scores[first:]]
            return {
                "category": item["category"],
                "nats": -math.fsum(scores),
                "tokens": len(scores),
                "bytes": len(item["text"].encode()),
                "windows": len(asked),
            }

        return finish

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """Bits per byte and perplexity with intervals over texts, in all and by category."""

        def figures_of(of: Sequence[Mapping[str, Any]]) -> list[Figure]:
            nats = [record["nats"] for record in of]
            bits = ratio("bits per byte", [x / math.log(2) for x in nats], [record["bytes"] for record in of])
            each = ratio("", nats, [record["tokens"] for record in of])
            powers = [None if x is None else math.exp(x) for x in (each.value, each.low, each.high)]
            told: dict[str, Any] = {"n": each.n, "is_share": False, "is_better": "lower"}
            return [bits, Figure(name="perplexity", value=powers[0], low=powers[1], high=powers[2], **told)]

        categories = list(dict.fromkeys(str(record["category"]) for record in records))
        groups = {name: figures_of([r for r in records if r["category"] == name]) for name in categories}
        return figures_of(records), groups if len(groups) > 1 else {}


def windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, first scored, end) of each window over `length` tokens: every token but the first is scored once.

    length 10, window 6, stride 3:   0 1 2 3 4 5 . . . .   scores 1 to 5
                                     . . . 3 4 5 6 7 8 .   scores 6 to 8
                                     . . . . 4 5 6 7 8 9   scores 9
    """
    found, first = [], 1
    while first < length:
        end = min(length, window if first == 1 else first + stride)
        found.append((max(0, end - window), first, end))
        first = end
    return found


def _texts(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".jsonl":
        try:
            text = read_bytes(path, "text").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: a text must be UTF-8: {error}.") from error
        if not text:
            raise ConfigError(f"{path}: the text is empty.")
        return [{"id": "0", "category": "all", "text": text}]
    found = []
    for number, line in enumerate(read_lines(path)):
        name, category = line.take("id", str, str(number)), line.take("category", str, "all")
        text = line.take("text", str)
        if not text:
            raise line.wrong("text must not be empty")
        found.append({"id": name, "category": category, "text": text})
    return found
