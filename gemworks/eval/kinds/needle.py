"""A fact hidden in a long text: is it found, by how long the text is and how deep the fact lies?

The text is made of plain sentences about people and places drawn with a seed, or cut from a file; the fact is one
sentence with a number of seven digits that nothing else holds. Length is in tokens of the model, prompt and question
included; depth 0 is the beginning of the text, 1 its end. Answered greedily; right where the number is in the answer.

What it does not measure: understanding. Finding one odd sentence is the least a long context must do.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks.errors import ContextLengthError
from gemworks.eval.intervals import Figure, share
from gemworks.eval.reading import Table, digest, read_bytes

_ANSWER_TOKENS = 32
_NAMES = [
    "Anna",
    "Boris",
    "Clara",
    "Dario",
    "Elena",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jamal",
    "Karin",
    "Luis",
    "Mona",
    "Nils",
    "Olga",
    "Pavel",
    "Rosa",
    "Sven",
]
_PLACES = [
    "Aarhus",
    "Bergen",
    "Cadiz",
    "Delft",
    "Evora",
    "Fulda",
    "Ghent",
    "Hanoi",
    "Izmir",
    "Jaipur",
    "Kyoto",
    "Leeds",
    "Malmo",
    "Nantes",
    "Oslo",
    "Porto",
]
_ACTS = (
    *("walked to the market in", "wrote a letter to a friend in", "waited for the train to", "painted a bridge in"),
    *("bought bread and apples in", "read a book about the history of", "planned a journey to", "missed the bus to"),
)
_TIMES = (
    *("In the morning", "After lunch", "On a rainy day", "Last summer", "Before the holidays", "Late in the evening"),
)
_QUESTION = "What is the access number of {place}? Answer with the number alone."


@dataclass
class Needle:
    """Lengths x depths x repeats."""

    name: str
    digest: str
    lengths: list[int]
    depths: list[float]
    repeats: int
    seed: int
    text: str | None = None
    kind: str = "needle"

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Needle":
        """The task of a TOML file: lengths, depths, repeats, seed, and data (a text file to cut from)."""
        lengths = _numbers(table, "lengths", [1024, 2048, 4096, 8192], int, 128, 1 << 20)
        depths = _numbers(table, "depths", [0.0, 0.25, 0.5, 0.75, 1.0], float, 0, 1)
        repeats, seed = table.number("repeats", 4, 1, 1000), table.number("seed", 0, 0)
        data = table.take("data", str, None)
        told = {"lengths": lengths, "depths": depths, "repeats": repeats, "seed": seed}
        if data is None:
            return cls(name, digest(told), lengths, depths, repeats, seed)
        path = folder / data
        text = read_bytes(path, "text").decode("utf-8", "replace")
        if len(text) < 1000:
            raise table.wrong(f"data must be a text of 1,000 characters or more, got {len(text)}")
        return cls(name, digest(told, path), lengths, depths, repeats, seed, text)

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """Every length with every depth, `repeats` times; each has a text, a place and a number of its own."""
        return [
            {"id": f"{length}-{depth:g}-{i}", "length": length, "depth": depth}
            for length in self.lengths
            for depth in self.depths
            for i in range(self.repeats)
        ]

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin one: ContextLengthError where the model's context is shorter than the text."""
        if item["length"] + _ANSWER_TOKENS > llm.context:
            raise ContextLengthError(f"{item['length']:,} tokens and an answer; the context holds {llm.context:,}.")
        draw = random.Random(f"{self.seed} {item['id']}")
        place, number = draw.choice(_PLACES), str(draw.randrange(1_000_000, 10_000_000))
        prompt, num_tokens = self._prompt(llm, item["length"], item["depth"], place, number, draw)
        asked = llm.submit(llm.prepare(prompt, temperature=0.0, max_tokens=_ANSWER_TOKENS))

        def finish() -> dict[str, Any]:
            text = asked.last().text
            told = {"length": item["length"], "depth": item["depth"], "tokens": num_tokens, "number": number}
            return {**told, "text": text, "right": number in text.replace(",", "").replace(" ", "")}

        return finish

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """The share found, by length and by depth within each."""

        def found(of: Sequence[Mapping[str, Any]], name: str = "found") -> Figure:
            return share(name, sum(record["right"] for record in of), len(of))

        groups = {}
        for length in dict.fromkeys(record["length"] for record in records):
            here = [record for record in records if record["length"] == length]
            depths = dict.fromkeys(record["depth"] for record in here)
            at = [found([r for r in here if r["depth"] == depth], f"at {100 * depth:g} %") for depth in depths]
            groups[f"{length:,} tokens"] = [found(here), *at]
        return [found(records)], groups

    def _prompt(
        self, llm: Any, length: int, depth: float, place: str, number: str, draw: random.Random
    ) -> tuple[Any, int]:
        """The prompt with about `length` tokens, never more, and how many it has in truth."""
        needle = f"The access number of {place} is {number}."
        question = _QUESTION.format(place=place)
        # Room for BOS, turn tokens and what tokens at borders may merge or split into.
        room = length - len(llm.tokenizer.encode(f"{needle}\n\n{question}")) - 16
        sentences, used = [], 0
        for sentence in self._sentences(draw):
            used += len(llm.tokenizer.encode(" " + sentence))
            if used > room:
                break
            sentences.append(sentence)
        at = round(depth * len(sentences))
        text = " ".join([*sentences[:at], needle, *sentences[at:]]) + f"\n\n{question}"
        prompt: Any = [{"role": "user", "content": text}] if llm.is_chat else f"{text}\nThe access number of {place} is"
        return prompt, len(llm.tokenizer.encode(text))

    def _sentences(self, draw: random.Random) -> Any:
        if self.text is not None:
            words = self.text.split()
            start = draw.randrange(len(words))
            while True:  # round and round: a short file is repeated
                part = [words[(start + i) % len(words)] for i in range(16)]
                start += 16
                yield " ".join(part)
        while True:
            yield f"{draw.choice(_TIMES)} {draw.choice(_NAMES)} {draw.choice(_ACTS)} {draw.choice(_PLACES)}."


def _numbers(table: Table, name: str, default: list[Any], kind: type, least: float, most: float) -> list[Any]:
    found = table.take(name, list, default)
    accepted = int if kind is int else (int, float)
    if not found or not all(
        isinstance(one, accepted) and not isinstance(one, bool) and least <= one <= most for one in found
    ):
        raise table.wrong(f"{name} must be numbers between {least:g} and {most:g}, got {found}")
    return [kind(one) for one in found]
