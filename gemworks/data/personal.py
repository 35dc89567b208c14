"""Personal information and secrets in text: found by form, checked where a form has a check digit, masked by kind.

    email    a.b@host.tld, but not of a reserved host (example.org) -> [email]
    phone    +49 30 1234567, (030) 123-4567 with a word like "tel" before it, 212-555-0123
    iban     country, length of that country, remainder of 97 is 1  (ISO 13616)
    card     13 to 19 digits of a known issuer range, Luhn's check digit
    ip       IPv4 and IPv6 addresses of the public internet; private, reserved and documentation ranges stay
    key      private keys, tokens of well-known services, and values assigned to names like api_key

Not found: names, postal addresses, numbers of identity documents, and telephone numbers written without + and without
a word that says so (they look like any number).
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("key", "email", "iban", "card", "ip", "phone")  # the first of two that overlap wins


class Found(NamedTuple):
    """Characters start ... end - 1 of a text are of `kind`."""

    start: int
    end: int
    kind: str


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}(?![\w-])")
_RESERVED_HOST = re.compile(r"[@.](?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$")  # RFC 2606
_PATH_AFTER = re.compile(r"[:/]\w")  # git@host:path is an address of a repository
_PHONE_PLUS = re.compile(r"(?<![\w+.,])(?:\+|00)[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}(?![\w])")
_PHONE_AMERICAN = re.compile(
    r"(?<![\w.\-])(?:\+?1[ .\-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[\-.])[2-9]\d\d[\-. ]\d{4}(?![\w\-])"
)
_PHONE_NAMED = re.compile(r"(?<![\w+.\-/])\(?\d[\d \-/().]{5,18}\d(?!\w)")
_PHONE_NAME = re.compile(
    "\\b(?:tel(?:ephone|efon|\u00e9fono|\u00e9phone)?|phone|fax|mobile|mobil|cell|call|whatsapp|handy|fon)"
    r"(?:\s*(?:number|no|nr|at|me at|us at))?[.:]*\s*$",
    re.IGNORECASE,
)
_NAME_REACH = 30
_NEAR_PHONE = re.compile(r"\d[\d \-/().]{5}")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
_CARD = re.compile(r"(?<![\w.+\-])\d(?:[ \-]?\d){12,18}(?![\w\-])")
_IP4 = re.compile(r"(?<![\w.\-])(?<!\w/)(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION_BEFORE = re.compile(r"(?i)(?:\bversion|\bkernel|\bv|\brelease|\bsection|\u00a7|\bchapter)[ .:=]*$")
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]{40,8000}?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{22,}\b|\bglpat-[\w-]{20,}"
    r"|\bxox[abposr]-[A-Za-z0-9-]{10,}|\bAIza[0-9A-Za-z_-]{35}\b|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\b(?:sk|rk|pk)[-_](?:live[-_]|test[-_]|proj-|ant-)?[A-Za-z0-9_-]{20,}\b"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
# Looked for first: a plain search is ten times as fast as the pattern, and most texts have none.
_KEY_MARKS = (
    *(
        "PRIVATE KEY",
        "AKIA",
        "ASIA",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "xox",
        "AIza",
        "hf_",
    ),
    *("sk-", "sk_", "rk-", "rk_", "pk-", "pk_", "eyJ"),
)
_ASSIGNED_MARKS = ("api_key", "apikey", "api-key", "secret", "token", "password", "passwd")
_ASSIGNED = re.compile(
    r"(?i)\b(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|password|passwd)\b[\"']?\s*[:=]\s*"
    r"[\"']?([^\s\"',;]{12,128})"
)
_ISSUERS = ("30", "34", "35", "36", "37", "38", "60", "62", "64", "65")
_MIN_BITS = 3.2  # a character; random base64 of 20 has about 4.0, a word or a placeholder less than 3.2
_SEPARATORS = str.maketrans("", "", " -./()")

# Length of an IBAN by country (SWIFT's registry).
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
    }.items()
    for country in countries.split()
}


def find_personal(text: str) -> list[Found]:
    """Return what is personal in `text`, in its order, without overlaps."""
    found: list[Found] = []
    for kind in KINDS:
        for one in _FINDERS[kind](text):
            if not any(one.start < other.end and other.start < one.end for other in found):
                found.append(one)
    return sorted(found)


def mask_personal(text: str, found: list[Found]) -> str:
    """Return the text with every find replaced by its kind in brackets."""
    parts, at = [], 0
    for start, end, kind in found:
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]])


def is_iban(text: str) -> bool:
    """Whether `text` (spaces allowed) is an IBAN: a known country, its length, and 1 modulo 97."""
    compact = text.replace(" ", "")
    if _IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_card(digits: str) -> bool:
    """Whether a string of digits has a payment card's length and first digits, and Luhn's check digit."""
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    if digits[0] not in "45" and digits[:2] not in _ISSUERS and not 2221 <= int(digits[:4]) <= 2720:
        return False
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            is_url = text[: match.start()].endswith("://") or _PATH_AFTER.match(text, match.end())
            if ".." not in match.group() and not is_url and not _RESERVED_HOST.search(match.group()):
                yield Found(match.start(), match.end(), "email")


def _phones(text: str) -> Iterator[Found]:
    if _NEAR_PHONE.search(text) is None:
        return
    for pattern in (_PHONE_PLUS, _PHONE_AMERICAN, _PHONE_NAMED):
        for match in pattern.finditer(text):
            digits = re.sub(r"\D", "", match.group())
            if not 7 <= len(digits) <= 15 or len(set(digits)) < 3 or _is_date(match.group()):
                continue
            before = text[max(0, match.start() - _NAME_REACH) : match.start()]
            if pattern is not _PHONE_NAMED or _PHONE_NAME.search(before):
                yield Found(match.start(), match.end(), "phone")


_DATE = re.compile(r"\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4}|\d{4} ?[-/] ?\d{4}")


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None


def _ibans(text: str) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        # The pattern may have run on into the words behind: try the country's own length first.
        length = _IBAN_LENGTHS.get(match.group()[:2])
        taken = _first_characters(match.group(), length) if length else None
        if taken and is_iban(taken):
            yield Found(match.start(), match.start() + len(taken), "iban")


def _first_characters(text: str, count: int) -> str | None:
    """The beginning of `text` that has `count` characters besides spaces."""
    seen = 0
    for i, character in enumerate(text):
        seen += character != " "
        if seen == count:
            return text[: i + 1]
    return None


def _cards(text: str) -> Iterator[Found]:
    for match in _CARD.finditer(text):
        if is_card(match.group().translate(_SEPARATORS)):
            yield Found(match.start(), match.end(), "card")


def _addresses(text: str) -> Iterator[Found]:
    for pattern, mark in ((_IP4, "."), (_IP6, ":")):
        for match in pattern.finditer(text) if mark in text else ():
            try:
                address = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            # 1.2.3.4 and "version 10.4.2.1" are not addresses of anybody.
            if address.is_global and not address.is_multicast and not _looks_like_version(text, match):
                yield Found(match.start(), match.end(), "ip")


def _looks_like_version(text: str, match: re.Match) -> bool:
    if ":" in match.group():
        return len(match.group()) < 8  # 1::2 and its like
    before = text[max(0, match.start() - 12) : match.start()]
    return all(len(part) == 1 for part in match.group().split(".")) or _VERSION_BEFORE.search(before) is not None


def _keys(text: str) -> Iterator[Found]:
    for match in _KEY.finditer(text) if any(mark in text for mark in _KEY_MARKS) else ():
        if match.group().startswith("-----") or _bits(match.group()) >= _MIN_BITS:
            yield Found(match.start(), match.end(), "key")
    lower = text.lower()
    for match in _ASSIGNED.finditer(text) if any(mark in lower for mark in _ASSIGNED_MARKS) else ():
        value = match.group(1)
        # Code that reads a secret from somewhere is not one.
        if _bits(value) >= _MIN_BITS and any(map(str.isdigit, value)) and not re.search(r"[(){}\[\]<>$]", value):
            yield Found(match.start(1), match.end(1), "key")


def _bits(text: str) -> float:
    """Entropy of the characters of a text, in bits a character."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


_FINDERS = {"key": _keys, "email": _emails, "iban": _ibans, "card": _cards, "ip": _addresses, "phone": _phones}
