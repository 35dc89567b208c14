"""Multiple choice by log-likelihood: which continuation of a text does the model find likeliest?

    {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0, "category": "cities"}

With `template` the context is made of a line's other keys. Each choice is scored as text after the context (and BOS),
without a chat form. Three figures: by the sum of its log-probabilities, by the sum over its characters (as
lm-evaluation-harness's acc_norm has it: long choices are no longer at a loss), and by the sum over its bytes. A tie for
the best counts as wrong.

Where the context's last token and the choice's first would be one token, that token counts to the choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks.eval.intervals import Figure, share
from gemworks.eval.reading import Table, digest, filled, read_lines


@dataclass
class Choice:
    """The questions of a file."""

    name: str
    digest: str
    questions: list[dict[str, Any]]
    kind: str = "choice"

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Choice":
        """The task of a TOML file: data, template, delimiter."""
        path, template = folder / table.take("data", str), table.take("template", str, None)
        delimiter = table.take("delimiter", str, "")
        made_of = digest({"template": template, "delimiter": delimiter}, path)
        return cls(name, made_of, [_question(line, i, template, delimiter) for i, line in enumerate(read_lines(path))])

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """The questions, in the file's order."""
        return self.questions

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin a question: a request for each choice."""
        asked = [begin_score(llm, item["context"], choice) for choice in item["choices"]]

        def finish() -> dict[str, Any]:
            sums = [one() for one in asked]
            return {
                "category": item["category"],
                "logprobs": sums,
                "right": _is_best(sums, item["answer"]),
                "right_chars": _is_best(_over(sums, [len(c) for c in item["choices"]]), item["answer"]),
                "right_bytes": _is_best(_over(sums, [len(c.encode()) for c in item["choices"]]), item["answer"]),
                "answer": item["answer"],
            }

        return finish

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """Accuracies, and those of each category where there are several."""
        keys = {"right": "right", "right, by characters": "right_chars", "right, by bytes": "right_bytes"}

        def count(of: Sequence[Mapping[str, Any]]) -> list[Figure]:
            return [share(name, sum(record[key] for record in of), len(of)) for name, key in keys.items()]

        categories = list(dict.fromkeys(str(record["category"]) for record in records))
        groups = {name: count([r for r in records if r["category"] == name]) for name in categories}
        return count(records), groups if len(groups) > 1 else {}


def begin_score(llm: Any, context: str, continuation: str) -> Callable[[], float]:
    """Begin to score a text after another; what comes back waits and returns the sum of log-probabilities, in nats."""
    tokenizer = llm.tokenizer
    before, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    first = 1 + shared
    asked = llm.submit(llm.prepare([tokenizer.bos_id, *whole], kind="score", score_from=first))
    return lambda: math.fsum(score.logprob for score in asked.finish().scores[first:])


def _question(line: Table, number: int, template: str | None, delimiter: str) -> dict[str, Any]:
    choices, answer = line.texts("choices"), line.take("answer", int)
    if len(choices) < 2 or not all(choices):
        raise line.wrong("choices must be two texts or more, none of them empty")
    if not 0 <= answer < len(choices):
        raise line.wrong(f"answer must be the number of a choice, 0 to {len(choices) - 1}, got {answer}")
    found = {"id": line.take("id", str, str(number)), "category": line.take("category", str, "all")}
    if template is None:
        context = line.take("context", str)
        line.end()
    else:
        context = filled(template, line.all(), line.where)
    return found | {"context": context, "choices": [delimiter + choice for choice in choices], "answer": answer}


def _over(sums: Sequence[float], lengths: Sequence[int]) -> list[float]:
    return [total / length for total, length in zip(sums, lengths, strict=True)]


def _is_best(scores: Sequence[float], answer: int) -> bool:
    return all(scores[answer] > score for i, score in enumerate(scores) if i != answer)
