r"""An image and a policy as ShieldGemma 2 reads them (spec 14), id for id as transformers' processor makes them.

    <bos><bos><start_of_turn>user\n IMAGE <start_of_turn>user\n INSTRUCTION <end_of_turn>\n<start_of_turn>model\n

What looks like slips is what the published processor renders, and so what the published figures were measured with:
<bos> and the user's header stand twice, and each line of the instruction after the first is set off by a newline and
16 spaces. The last id is the newline after "model"; the next token is Yes or No.

Policies come after the image, so that everything up to their text is computed once for all of them. A policy is text:
control tokens in it are the characters they are written with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemworks.errors import CheckpointError
from gemworks.safety.policies import Policy
from gemworks.tokenizer.images import ImagePrompt, ImageSpan

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

_LINE = "\n" + " " * 16
_BEFORE = _LINE.join(
    (
        "You are a policy expert trying to help determine whether a generated or real image is in",
        " violation of the safety policy below. Your decision must very clearly follow the specific",
        " language used in the safety policy and should not include any interpretation outside of the",
        " safety policy.\n\n",
        "<BEGIN_SAFETY_POLICY>\n",
        "",
    )
)
_AFTER = _LINE.join(
    (
        "\n",
        "</END_SAFETY_POLICY>\n\n",
        "Does the image violate the above policy? Your Answer must start with 'Yes' or 'No'.",
        "",
    )
)

_NEEDED = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_image>")


def guard_prompt(tokenizer: "Tokenizer", policy: Policy, *, tokens_per_image: int) -> ImagePrompt:
    """Return the ids of an image under a policy and the one span of its soft tokens.

    Raises CheckpointError where the vocabulary lacks what the prompt needs.
    """
    start, end, image_start, soft, image_end = _needed_ids(tokenizer)
    # All between two control tokens is split as one text, so newlines merge as in transformers.
    ids = [tokenizer.bos_id, tokenizer.bos_id, start, *tokenizer.encode("user\n\n\n"), image_start]
    span = ImageSpan(len(ids), tokens_per_image, 0)
    ids += [*[soft] * tokens_per_image, image_end, *tokenizer.encode("\n\n"), start]
    ids += [*tokenizer.encode(f"user\n{_BEFORE}{policy.text}{_AFTER}"), end, *tokenizer.encode("\n")]
    ids += [start, *tokenizer.encode("model\n")]
    return ImagePrompt(ids, (span,))


def common_start(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids that all prompts begin with."""
    first, *others = prompts
    count = len(first)
    for other in others:
        pairs = zip(first[:count], other, strict=False)
        count = next((i for i, (one, its) in enumerate(pairs) if one != its), min(count, len(other)))
    return list(first[:count])


def _needed_ids(tokenizer: "Tokenizer") -> list[int]:
    ids = [(name, tokenizer.id_of(name)) for name in _NEEDED]
    if absent := [name for name, token_id in ids if token_id is None]:
        raise CheckpointError(
            f"a guard's vocabulary must have {', '.join(_NEEDED)}, got one without {', '.join(absent)}.\n"
            "ShieldGemma 2 has them: gemworks pull shieldgemma-2-4b-it"
        )
    return [token_id for _, token_id in ids if token_id is not None]
