"""Where an LLM's guesses come from: its own text, or a smaller model of the family."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.errors import ConfigError
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemworks.engine.drafting import NewProposer
    from gemworks.llm.loading import Loaded

LOOKUP = "lookup"

# A drafting model has a row for each text that may carry a draft; more wait without.
_TEXTS = 4


def new_proposer(
    draft: str, *, vocab: int, context: int, tokenizer: Tokenizer, load: "Callable[[str], Loaded]"
) -> "NewProposer":
    """Return what makes a proposer for each answer: prompt lookup, or the model that `load` gives for a name.

    `vocab`, `context` and `tokenizer` are the answering model's. Raises ConfigError where the other has other tokens.
    """
    from gemworks.engine.drafting import DraftingRunner
    from gemworks.engine.runner import Runner
    from gemworks.engine.speculative import DraftModel, PromptLookup

    if draft == LOOKUP:
        return lambda run: PromptLookup(vocab)
    loaded = load(draft)
    _check_tokens(draft, loaded.tokenizer, tokenizer)
    told: dict[str, Any] = {
        "context": min(context, loaded.config.max_positions),
        "num_sequences": _TEXTS,
        "vocab": loaded.vocab,
    }
    runner = DraftingRunner(Runner(loaded.model, draft=DRAFT_LENGTHS[-1] + 1, **told))
    return lambda run: DraftModel(runner, run.sampler, vocab=vocab)


def _check_tokens(name: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Refuse a drafting model with another vocabulary: its guesses would be noise. Rows beyond ours are fine."""
    shared = min(theirs.size, ours.size)
    for token_id in (*range(0, shared, 997), shared - 1):
        its, mine = theirs.piece(token_id), ours.piece(token_id)
        if its != mine:
            raise ConfigError(
                f"draft={name}: a drafting model must have the same vocabulary, and token {token_id} is {its!r} there "
                f"and {mine!r} here.\nUse a smaller model of the same family."
            )
