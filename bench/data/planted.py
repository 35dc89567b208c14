"""A corpus with defects planted in it: what is wrong with each document is known, so every rule can be scored.

`make(clean, foreign, seed, share)` returns documents {"text", "plant", ...}: clean ones have plant "clean", the others
one kind of defect each. The personal data is made up: numbers with right check digits that belong to nobody, hosts
that do not exist. Near misses (dates, versions, private addresses, wrong check digits) are planted as clean text.
"""

import random
import string
from collections.abc import Sequence
from typing import Any

KINDS = (
    *("duplicate.exact", "duplicate.near", "contamination", "language", "spam", "unsafe"),
    *("repetition.lines", "repetition.phrases", "gopher.symbols", "gopher.short", "gopher.no_words"),
    *("email", "phone", "iban", "card", "ip", "key"),
)
PERSONAL = ("email", "phone", "iban", "card", "ip", "key")

_NAMES = (
    "anna",
    "jonas",
    "priya",
    "chen",
    "maria",
    "omar",
    "lucia",
    "peter",
    "ingrid",
    "kwame",
    "yuki",
    "elena",
    "tom",
    "sara",
)
_WORDS = ("harbor", "maple", "river", "stone", "cedar", "falcon", "amber", "willow", "summit", "copper", "meadow")
_PRODUCTS = (
    "watch",
    "phone case",
    "diet pill",
    "vacation package",
    "loan",
    "hair tonic",
    "running shoe",
    "insurance plan",
)
_SPAM = (
    "Buy now and save up to {n}% on every {p}!",
    "Click here for our limited time offer: http://{w}-{v}.shop/deal{n}",
    "Order today and get free shipping on your {p}.",
    "100% guaranteed results or your money back guarantee applies!",
    "Act now, this special offer ends in {n} hours.",
    "Make money from home with our {p} program, no credit card needed!",
    "Sign up now for your free trial at www.{w}{v}.top",
    "Our customers love the {p}: best price, hot deals, risk free.",
)
_UNSAFE = (
    "Watch free porn and xxx sex videos with hot camgirls on {w} tonight.",
    "Join the sex chat now, hardcore sex videos are added every {n} minutes.",
    "Our escort service in {w} has nude pics of all escort girls.",
    "You can buy cocaine online from {w}{v}, and stolen credit cards as well.",
    "Here is how to make a bomb from things in your {w} kitchen.",
)
_NEAR_MISSES = (
    "It was shown on 1998-04-12 and again on 12.04.2003, in the years 1914-1918.",
    "Use version 10.4.21.7 of the library, or 2.31.0 where that fails; section 4.2.1.3 explains it.",
    "The router listens on 192.168.1.20 and 10.0.0.5, the documentation uses 203.0.113.7 and 2001:db8::1.",
    "The reference DE00 1234 5678 9012 3456 78 and the order 4111 1111 1111 1112 are not valid.",
    "Set password = os.environ['APP_PASSWORD'] and api_key = config.get_key(name) before the call.",
    "The population was 12 345 678 in 1990, 3.14159265358979 is close to pi, and ISBN 978-3-16-148410-0 is a book.",
    "Write @decorator above def f(a, b), then call user @ host as the page says.",
)


def make(
    clean: Sequence[dict], foreign: Sequence[str], seed: int, share: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (documents in random order, evaluation texts). Each kind is planted share * len(clean) times.

    `foreign`: texts in languages that the clean documents are not in.
    """
    rng = random.Random(seed)
    number = max(5, int(share * len(clean)))
    made = [{**document, "plant": "clean"} for document in clean]
    for document in rng.sample(made, min(len(made), number)):
        document["text"] = _inserted(document["text"], " ".join(rng.sample(_NEAR_MISSES, 2)), rng)
        document["near_miss"] = True
    evaluation = [_question(rng) for _ in range(50)]
    # Copies are made of documents of some length: a near copy of a short one is not alike enough by the definition.
    long_ones = [document for document in clean if 300 < len(document["text"].split()) < 5000] or list(clean)
    for kind in KINDS:
        for _ in range(number):
            source = rng.choice(long_ones)
            made.append(_planted(kind, source, foreign, evaluation, rng))
    # Originals before their copies, so that it is the copy that goes; all else in random order.
    copies = [document for document in made if document["plant"].startswith("duplicate")]
    others = [document for document in made if not document["plant"].startswith("duplicate")]
    rng.shuffle(others)
    return others + copies, evaluation


def _planted(kind: str, source: dict, foreign: Sequence[str], evaluation: list[str], rng: random.Random) -> dict:
    text, more = source["text"], {}
    if kind == "duplicate.exact":
        text = text.replace("\n\n", "\n \n").replace(",", " ,") if rng.random() < 0.5 else text
    elif kind == "duplicate.near":
        text = _changed(text, 0.02, rng)
    elif kind == "contamination":
        more["secret"] = rng.choice(evaluation)
        text = _inserted(_fresh(text, rng), more["secret"], rng)
    elif kind == "language":
        text = rng.choice(foreign)
    elif kind in PERSONAL:
        more["secret"], sentence = personal(kind, rng)
        text = _inserted(_fresh(text, rng), sentence, rng)
    else:
        text = _bad(kind, text, rng)
    return {"source": "planted", "title": kind, "text": text, "plant": kind, **more}


def _bad(kind: str, text: str, rng: random.Random) -> str:
    def fill(line: str) -> str:
        some = {"n": rng.randint(5, 95), "p": rng.choice(_PRODUCTS), "w": rng.choice(_WORDS), "v": rng.choice(_NAMES)}
        return line.format(**some)

    words = text.split()
    start = rng.randrange(max(1, len(words) - 400))
    some = " ".join(words[start : start + 120])
    if kind == "spam":
        return some + "\n\n" + "\n".join(fill(line) for line in rng.choices(_SPAM, k=rng.randint(5, 12)))
    if kind == "unsafe":
        return some + "\n\n" + "\n".join(fill(line) for line in rng.choices(_UNSAFE, k=rng.randint(4, 10)))
    if kind == "repetition.lines":
        lines = [" ".join(words[start + 9 * i : start + 9 * i + 9]) for i in range(8)]
        return "\n".join(rng.choices(lines, k=30))
    if kind == "repetition.phrases":
        phrase = " ".join(words[start : start + rng.randint(3, 8)])
        return some + " " + " ".join([phrase] * rng.randint(12, 30))
    if kind == "gopher.symbols":
        return " ".join(f"#{word}" if rng.random() < 0.4 else word for word in words[start : start + 200])
    if kind == "gopher.short":
        return " ".join(words[start : start + rng.randint(5, 40)])
    assert kind == "gopher.no_words"
    return " ".join(str(rng.randint(0, 10**6)) if rng.random() < 0.6 else rng.choice(words) for _ in range(150))


def personal(kind: str, rng: random.Random) -> tuple[str, str]:
    """(secret, a sentence with it)."""
    name, word, other = rng.choice(_NAMES), rng.choice(_WORDS), rng.choice(_WORDS)
    if kind == "email":
        secret = f"{name}.{word}{rng.randint(1, 99)}@{other}-mail.{rng.choice(['com', 'org', 'de', 'co.uk', 'io'])}"
        return secret, rng.choice(["Write to {}.", "{} answers within a day.", "Contact: {}, at any time."]).format(
            secret
        )
    if kind == "phone":
        return _phone(rng)
    if kind == "iban":
        secret = _iban(rng)
        return secret, f"Send the sum to {secret} by Friday."
    if kind == "card":
        secret = _card(rng)
        return secret, f"The card {secret} was charged twice."
    if kind == "ip":
        secret = (
            f"{rng.choice([8, 23, 52, 81, 95, 151])}.{rng.randint(10, 250)}.{rng.randint(0, 250)}.{rng.randint(1, 250)}"
        )
        if rng.random() < 0.25:
            secret = f"2a02:{rng.randint(0x1000, 0xFFFF):x}:{rng.randint(1, 0xFFFF):x}::{rng.randint(0x10, 0xFFFF):x}"
        return secret, f"The last login came from {secret} at night."
    letters = string.ascii_letters + string.digits
    token = "".join(rng.choices(letters, k=36))
    secret = rng.choice(
        [
            f"ghp_{token}",
            "AKIA" + "".join(rng.choices(string.ascii_uppercase + string.digits, k=16)),
            f"sk-{token}{token[:10]}",
        ]
    )
    if rng.random() < 0.3:
        secret = token[:28] + "7"
        return secret, f'The file says api_key = "{secret}" in its second line.'
    return secret, f"The log shows {secret} in clear."


def _phone(rng: random.Random) -> tuple[str, str]:
    digits = lambda n: "".join(str(rng.randint(0, 9)) for _ in range(n))  # noqa: E731
    form = rng.randrange(4)
    if form == 0:
        secret = f"+{rng.choice([44, 49, 33, 81, 91])} {rng.randint(20, 99)} {digits(4)} {digits(4)}"
        return secret, f"She can be reached at {secret} after six."
    if form == 1:
        secret = f"({rng.randint(201, 989)}) {rng.randint(200, 999)}-{digits(4)}"
        return secret, f"Call {secret} for the keys."
    if form == 2:
        secret = f"{rng.randint(201, 989)}-{rng.randint(200, 999)}-{digits(4)}"
        return secret, f"The number of the office is {secret}."
    secret = f"0{rng.randint(30, 99)}/{digits(7)}"
    return secret, f"Tel.: {secret} in the mornings."


def _iban(rng: random.Random) -> str:
    country, length = rng.choice([("DE", 22), ("FR", 27), ("ES", 24), ("NL", 18), ("GB", 22)])
    body = "".join(str(rng.randint(0, 9)) for _ in range(length - 4))
    if country in ("GB", "NL"):
        body = "".join(rng.choices(string.ascii_uppercase, k=4)) + body[4:]
    check = 98 - int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    compact = f"{country}{check:02}{body}"
    return compact if rng.random() < 0.4 else " ".join(compact[i : i + 4] for i in range(0, length, 4))


def _card(rng: random.Random) -> str:
    body = [int(d) for d in rng.choice(["4", "51", "55", "37", "6011"])]
    size = 15 if body[:2] == [3, 7] else 16
    body += [rng.randint(0, 9) for _ in range(size - 1 - len(body))]
    total = sum(d if i % 2 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(body)))
    digits = "".join(map(str, [*body, -total % 10]))
    return digits if rng.random() < 0.4 or size == 15 else " ".join(digits[i : i + 4] for i in range(0, 16, 4))


def _question(rng: random.Random) -> str:
    """An evaluation item of 18 to 30 words that no book holds."""
    words = [
        rng.choice((*_WORDS, *_NAMES, "how", "many", "boxes", "carries", "between", "before", "which", "counts"))
        for _ in range(rng.randint(18, 30))
    ]
    return " ".join(words).capitalize() + "?"


def _fresh(text: str, rng: random.Random) -> str:
    """A document of its own out of a long one: its words in runs of a few, in another order."""
    words = text.split()[:1500]
    runs = [words[i : i + 12] for i in range(0, len(words), 12)]
    rng.shuffle(runs)
    runs = runs[: max(20, len(runs) // 2)]
    return "\n\n".join(" ".join(" ".join(run) for run in runs[i : i + 6]) + "." for i in range(0, len(runs), 6))


def _inserted(text: str, sentence: str, rng: random.Random) -> str:
    paragraphs = text.split("\n\n")
    at = rng.randrange(len(paragraphs))
    paragraphs[at] = f"{paragraphs[at]} {sentence}"
    return "\n\n".join(paragraphs)


def _changed(text: str, share: float, rng: random.Random) -> str:
    """Some words replaced by others, at random."""
    return " ".join(rng.choice(_WORDS) if rng.random() < share else word for word in text.split(" "))
