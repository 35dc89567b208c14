"""Safety policies as texts: the three that ShieldGemma 2 was trained with, word for word, and others in their form.

    No NAME: The image shall not contain content that ... (e.g., ...).

The model judges any text of that form; how well it does so was measured for its own three only (docs/guard.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from gemworks.errors import RequestError

# A policy is read again for every image. The three below have some 200 characters and 40 tokens.
MAX_CHARACTERS = 4000

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Policy:
    """What an image shall not show. `name` is how results call it, `text` is what the model reads."""

    name: str
    text: str

    def __post_init__(self):
        for field, limit in (("name", _SHOWN), ("text", MAX_CHARACTERS)):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip() or len(value) > limit:
                got = f"{len(value):,} characters" if isinstance(value, str) and value.strip() else f"{value!r:.80}"
                raise RequestError(f"a policy's {field} must be a text of 1 to {limit:,} characters, got {got}.")


# Interface of the model (spec 14): its training data has exactly these texts, capitals included.
_TRAINED: Final = (
    Policy(
        "dangerous",
        "No Dangerous Content: The image shall not contain content that facilitates or encourages activities that "
        "could cause real-world harm (e.g., building firearms and explosive devices, promotion of terrorism, "
        "instructions for suicide).",
    ),
    Policy(
        "sexual",
        "No Sexually Explicit content: The image shall not contain content that depicts explicit or graphic sexual "
        "acts (e.g., pornography, erotic nudity, depictions of rape or sexual assault).",
    ),
    Policy(
        "violence",
        "No Violence/Gore content: The image shall not contain content that depicts shocking, sensational, or "
        "gratuitous violence (e.g., excessive blood and gore, gratuitous violence against animals, extreme injury or "
        "moment of death).",
    ),
)

POLICIES: Final[Mapping[str, Policy]] = MappingProxyType({policy.name: policy for policy in _TRAINED})


def policies_of(asked: "str | Policy | Mapping[str, str] | Iterable[str | Policy] | None") -> tuple[Policy, ...]:
    """Return the policies that are meant: None is the three; names of these, Policies, or a mapping of name to text.

    Raises RequestError for an unknown name, for none at all, and where two policies have one name.
    """
    if asked is None:
        return _TRAINED
    if isinstance(asked, str | Policy):
        asked = [asked]
    try:
        if isinstance(asked, Mapping):
            texts: Mapping[Any, Any] = asked
            found = tuple(Policy(name, text) for name, text in texts.items())
        else:
            found = tuple(_policy(one) for one in asked)
    except TypeError:
        raise RequestError(f"policies must be names, Policies or a mapping, got {asked!r:.80}.") from None
    if not found:
        raise RequestError(f"at least one policy must be named, got none. Known: {', '.join(POLICIES)}.")
    names = [policy.name for policy in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(f'every policy must have a name of its own, got "{twice[0]}" twice.')
    return found


def _policy(one: str | Policy) -> Policy:
    if isinstance(one, Policy):
        return one
    if not isinstance(one, str):
        raise RequestError(f"a policy must be a name or a Policy, got {one!r:.80}.")
    if one not in POLICIES:
        near = get_close_matches(one.lower(), POLICIES, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise RequestError(
            f'policies are {", ".join(POLICIES)}, got "{one:.80}".{hint}\nOne of your own needs a name and a text.'
        )
    return POLICIES[one]
