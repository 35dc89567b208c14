"""Scores for advertising and for unsafe text: counts of telling phrases, weighted, for 100 words.

Limits: a list of phrases finds what it lists. It is English for the most part, blind to irony and context, and no
substitute for a trained classifier; `--unsafe-terms FILE` adds terms of your own. It is meant to be precise: one such
phrase in a long text stays far below the limit, so that novels, news and medical pages pass.
"""

import re
from functools import cache

from gemworks.data.words import Words

_ADVERTISING = (
    *("buy now", "order now", "order today", "click here", "click below", "call now", "act now", "sign up now"),
    *("limited time offer", "limited offer", "special offer", "exclusive offer", "best price", "lowest price"),
    *("free shipping", "free trial", "free gift", "100% free", "100% guaranteed", "money back guarantee"),
    *("satisfaction guaranteed", "no credit card", "no obligation", "risk free", "add to cart", "shop now"),
    *("discount code", "promo code", "coupon code", "save up to", "earn money", "make money", "extra income"),
    *("work from home", "get rich", "online casino", "casino bonus", "free spins", "betting tips", "payday loan"),
    *(
        "weight loss",
        "lose weight",
        "cheap viagra",
        "viagra",
        "cialis",
        "replica watches",
        "hot deals",
        "subscribe now",
    ),
    *("jetzt kaufen", "hier klicken", "kostenlos bestellen", "acheter maintenant", "cliquez ici", "livraison gratuite"),
    *(
        "compre ahora",
        "haga clic",
        "env\u00edo gratis",
        "oferta limitada",
        "clique aqui",
        "compre agora",
        "acquista ora",
    ),
)
_EXPLICIT = (
    *(
        "porn",
        "porno",
        "pornhub",
        "xxx",
        "nude pics",
        "nudes",
        "camgirl",
        "camgirls",
        "cam girls",
        "sex cam",
        "sex chat",
    ),
    *(
        "sex video",
        "sex videos",
        "hardcore sex",
        "hot milf",
        "milf",
        "milfs",
        "hentai",
        "blowjob",
        "cumshot",
        "creampie",
    ),
    *("anal sex", "gangbang", "deepthroat", "escort service", "escort girls"),
)
_DANGEROUS = (
    *("how to make a bomb", "build a pipe bomb", "make explosives at home", "synthesize nerve gas", "cook meth"),
    *("buy cocaine online", "buy fentanyl", "buy a gun without", "kill yourself", "how to poison someone"),
    *("credit card dumps", "stolen credit cards", "fullz", "hire a hitman", "hire a hacker"),
)
_LINK = re.compile(r"https?://\S+|www\.\S+", re.IGNORECASE)
_DANGEROUS_WEIGHT = 3.0
_FEW_WORDS = 50  # texts below are scored as if they had as many words


def content_scores(words: Words, terms: tuple[str, ...] = ()) -> dict[str, float]:
    """Return the scores of the sets spam and unsafe. `terms` are added to the unsafe ones."""
    text = words.text.lower()
    hundreds = max(len(words.folded), _FEW_WORDS) / 100
    spam = _count(_ADVERTISING, words, text)
    links = len(_LINK.findall(text)) if "://" in text or "www." in text else 0
    # An exclamation mark or capitals alone are no advertising: they count for as much as the phrases at most.
    capitals = sum(1 for word in words.raw if len(word) > 3 and word.isupper() and word.isalpha()) if spam else 0
    loud = 0.25 * (text.count("!") + capitals)
    unsafe = _count((*_EXPLICIT, *terms), words, text) + _DANGEROUS_WEIGHT * _count(_DANGEROUS, words, text)
    return {"spam.score": (spam + min(loud, spam) + 0.5 * links) / hundreds, "unsafe.score": unsafe / hundreds}


def _count(terms: tuple[str, ...], words: Words, text: str) -> int:
    """Occurrences of phrases as whole words. Only those whose every word is in the text are looked for."""
    found = 0
    for phrase, parts in _parts(terms):
        if parts <= words.different:
            found += sum(1 for _ in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text))
    return found


@cache
def _parts(terms: tuple[str, ...]) -> list[tuple[str, frozenset[str]]]:
    return [(phrase, Words(phrase).different) for phrase in dict.fromkeys(terms)]
