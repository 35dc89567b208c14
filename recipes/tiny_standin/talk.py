"""Conversations for training and questions for the evaluation, each a pure function of a seed."""

import random
from collections.abc import Callable, Iterator

from recipes.tiny_standin import small_talk, stories, tasks
from recipes.tiny_standin.phrasing import Exchange

Message = dict[str, str]
Maker = Callable[..., Exchange]  # (rng, held=False) -> Exchange

# Task -> (maker, share of the turns).
TASKS: dict[str, tuple[Maker, float]] = {
    "plus": (tasks.plus, 13),
    "minus": (tasks.minus, 13),
    "capital": (tasks.capital, 9),
    "country": (tasks.country, 3),
    "opposite": (tasks.opposite, 7),
    "colour": (tasks.colour, 5),
    "calendar": (tasks.calendar, 4),
    "how_many": (tasks.how_many, 3),
    "count": (tasks.count, 5),
    "spell": (tasks.spell, 9),
    "repeat": (tasks.repeat, 8),
    "greeting": (small_talk.greeting, 5),
    "identity": (small_talk.identity, 6),
    "name": (small_talk.my_name, 7),
    "cannot": (small_talk.cannot, 7),
    "story": (stories.tell, 3),
}
_MAKERS = [maker for maker, _ in TASKS.values()]
_SHARES = [share for _, share in TASKS.values()]

# Nothing in these asks for another answer: a system prompt must not confuse the model.
_SYSTEM = ("You are a helpful assistant.", "You are tiny.", "Be brief.", "Answer the question.", "Be polite and kind.")


def conversation(rng: random.Random, num_turns: int) -> list[Message]:
    """Messages of `num_turns` questions with answers; some depend on what was said before, names above all."""
    messages: list[Message] = []
    if rng.random() < 0.06:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM)})
    before: Exchange | None = None
    name: str | None = None
    for _ in range(num_turns):
        before = _next_turn(rng, before, name)
        name = before.slots.get("name", name)
        messages += _messages(before)
    return messages


def num_turns(rng: random.Random) -> int:
    """How long a conversation is: mostly one or two questions, now and then up to six."""
    return rng.choices((1, 2, 3, 4, 6), weights=(50, 26, 12, 8, 4))[0]


def held_out(seed: int, per_task: int) -> dict[str, list[list[Message]]]:
    """Task -> conversations whose last answer is scored, made of what training never shows. Stories are not here."""
    found = {}
    for task, (maker, _) in TASKS.items():
        if task != "story":
            rng = random.Random(f"{seed} held {task}")
            found[task] = [_messages(maker(rng, held=True)) for _ in range(per_task)]
    rng = random.Random(f"{seed} held recall")
    found["recall"] = [_recall(rng) for _ in range(per_task)]
    rng = random.Random(f"{seed} held follow-up")
    found["follow-up"] = [_follow_up(rng) for _ in range(per_task)]
    return found


def _next_turn(rng: random.Random, before: Exchange | None, name: str | None) -> Exchange:
    if before is not None:
        if rng.random() < (0.35 if name else 0.03):
            return small_talk.who_am_i(rng, name)
        follow_up = tasks.FOLLOW_UPS.get(before.task)
        if follow_up and rng.random() < 0.45 and (found := follow_up(rng, before)):
            return found
    elif rng.random() < 0.01:
        return small_talk.who_am_i(rng, None)
    return rng.choices(_MAKERS, weights=_SHARES)[0](rng)


def _recall(rng: random.Random) -> list[Message]:
    """A name never seen in training, something else, then the question for it in words never seen."""
    told = small_talk.my_name(rng, held=True)
    between = rng.choice(_MAKERS[:-1])(rng)
    return [
        *_messages(told),
        *(_messages(between) if "name" not in between.slots else []),
        *_messages(small_talk.who_am_i(rng, told.slots["name"], held=True)),
    ]


def _follow_up(rng: random.Random) -> list[Message]:
    """A held-out question and a second one that needs it."""
    while True:
        task = rng.choice(list(tasks.FOLLOW_UPS))
        first = TASKS[task][0](rng, held=True)
        if second := tasks.FOLLOW_UPS[task](rng, first):
            return [*_messages(first), *_messages(second)]


def _messages(exchange: Exchange) -> list[Message]:
    return [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.answer}]


def questions(messages: list[Message]) -> Iterator[str]:
    """The user's side of a conversation."""
    return (message["content"] for message in messages if message["role"] == "user")
