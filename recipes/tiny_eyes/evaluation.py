"""How often `tiny` is right about pictures it never saw, through the path that serves a user.

    scene -> PNG bytes -> LLM.chat -> greedy answer == the right one, letter for letter

`new scenes` are arrangements that training never saw in words that it did; `new words` are both. Wide scenes are asked
with "detail": "high", so with Pan & Scan.
"""

import io
import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gemworks import LLM
from gemworks.media import PanAndScan, crop_boxes
from recipes.tiny_eyes.questions import KINDS
from recipes.tiny_eyes.scenes import Scene, draw, random_scene
from recipes.tiny_standin.phrasing import Exchange

Report = Callable[[str, int, int], None]  # what is going on, how much of it is done, how much there is

_AT_ONCE = 8  # users
_MOST_TOKENS = 140  # of an answer; five shapes with their places take 110


class Score(NamedTuple):
    """Right answers of one kind of question. is_new_words: in phrasings kept from training."""

    kind: str
    is_new_words: bool
    right: int
    number: int
    cropped_right: int  # of the scenes among them that Pan & Scan cropped
    cropped_number: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.right / max(self.number, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share is with 95 % (Wilson 1927)."""
        return wilson(self.right, self.number)


def wilson(right: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share by Wilson's score, z standard deviations wide each way."""
    if number == 0:
        return 0.0, 1.0
    share, spread = right / number, z * z / number
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def held_questions(seed: int, kind: str, number: int, *, new_words: bool) -> Iterator[tuple[Scene, Exchange]]:
    """`number` scenes kept from training, each with a question of `kind`."""
    rng = random.Random(f"{seed} held {kind} {new_words}")
    while number:
        scene = random_scene(rng, held=True)
        if found := KINDS[kind][0](rng, scene, held=new_words):
            number -= 1
            yield scene, found


def asked(scene: Scene, question: str) -> list[dict[str, Any]]:
    """The messages of a user who sends a PNG file; wide ones ask for crops."""
    png = io.BytesIO()
    draw(scene).save(png, "PNG")
    image = {"type": "image", "image": png.getvalue(), "detail": "high" if scene.is_wide else "auto"}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def evaluate(model: Path, *, seed: int, number: int, report: Report) -> list[Score]:
    """Ask the model at `model` about `number` held-out scenes a kind, and a quarter as many in new words."""
    llm = LLM(model)
    try:
        return [
            _score(llm, list(held_questions(seed, kind, size, new_words=new_words)), kind, new_words, report)
            for new_words, size in ((False, number), (True, max(number // 4, 1)))
            for kind in KINDS
        ]
    finally:
        llm.close()


def _score(llm: LLM, questions: list[tuple[Scene, Exchange]], kind: str, new_words: bool, report: Report) -> Score:
    def is_right(question: tuple[Scene, Exchange]) -> bool:
        scene, exchange = question
        return llm.chat(asked(scene, exchange.user), temperature=0, max_tokens=_MOST_TOKENS).text == exchange.answer

    right: list[bool] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # the engine computes them together
        for one in pool.map(is_right, questions):
            right.append(one)
            report(f"asking about {kind}, {sum(right)} of {len(right)} right", len(right), len(questions))
    cropped = [scene.is_wide and bool(crop_boxes(scene.width, scene.height, PanAndScan())) for scene, _ in questions]
    cropped_right = sum(one and crops for one, crops in zip(right, cropped, strict=True))
    return Score(kind, new_words, sum(right), len(right), cropped_right, sum(cropped))
