"""Does the model recite a text it may have been trained on? 50 tokens are given, the next 50 are compared.

    exact        all 50 tokens are equal
    approximate  their edit distance (insert, delete, replace; in tokens) is at most 10 %: 5 of 50; exact ones included

Places are drawn uniformly over all tokens of the data (without those too near a text's end), with a seed. The prompt is
BOS and the prefix, also where that begins in the middle of a text; the answer is greedy. As the report on Gemma 3 has
it, section 6; Ippolito et al., https://arxiv.org/abs/2210.17546, for the approximate form.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError
from gemworks.eval.intervals import Figure, share
from gemworks.eval.reading import Table, digest, read_lines

_TOKENS = 50
_SHARE = 0.1


@dataclass
class Memorize:
    """Places in texts. prefix, suffix: in tokens of the model; samples: how many places are drawn."""

    name: str
    digest: str
    texts: list[str]
    samples: int = 1000
    prefix: int = _TOKENS
    suffix: int = _TOKENS
    seed: int = 0
    kind: str = "memorize"

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Memorize":
        """The task of a TOML file: data (JSON Lines with `text`), samples, prefix, suffix, seed."""
        path = folder / table.take("data", str)
        told = {"samples": table.number("samples", 1000, 1), "seed": table.number("seed", 0, 0)}
        told |= {"prefix": table.number("prefix", _TOKENS, 1), "suffix": table.number("suffix", _TOKENS, 1)}
        return cls(name, digest(told, path), [line.take("text", str) for line in read_lines(path)], **told)

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """The places, each with its prefix and the suffix that follows there, as token ids."""
        length = self.prefix + self.suffix
        tokens = [llm.tokenizer.encode(text) for text in self.texts]
        ends = list(accumulate(max(0, len(ids) - length + 1) for ids in tokens))
        if not ends[-1]:
            raise ConfigError(f"{self.name}: no text has {length} tokens, which prefix and suffix need.")
        places = random.Random(self.seed).sample(range(ends[-1]), min(self.samples, ends[-1]))
        found = []
        for place in places:
            text = bisect_right(ends, place)
            at = place - (ends[text - 1] if text else 0)
            ids = tokens[text][at : at + length]
            found.append({"id": f"{text}-{at}", "prefix": ids[: self.prefix], "suffix": ids[self.prefix :]})
        return found

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin one place."""
        prompt = [llm.tokenizer.bos_id, *item["prefix"]]
        asked = llm.submit(llm.prepare(prompt, temperature=0.0, max_tokens=self.suffix))

        def finish() -> dict[str, Any]:
            made = list(asked.last().token_ids)
            return {"distance": edit_distance(made, item["suffix"]), "suffix": self.suffix, "made": len(made)}

        return finish

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """The shares recited exactly and approximately."""
        exact = sum(record["distance"] == 0 for record in records)
        near = sum(record["distance"] <= _SHARE * record["suffix"] for record in records)
        told = {"is_better": "lower"}
        return [share("exact", exact, len(records), **told), share("approximate", near, len(records), **told)], {}


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements that make one of the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
