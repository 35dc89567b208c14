"""A model as it comes from its files: weights, tokenizer, and what its makers recommend."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemworks.errors import CheckpointError
from gemworks.model.config import TextConfig
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemworks.model.gemma3 import Gemma3
    from gemworks.quant.plan import QuantPlan
    from gemworks.weights.checkpoint import GenerationDefaults

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A loaded model. vocab: ids below it may be drawn."""

    model: "Gemma3"
    config: TextConfig
    generation: "GenerationDefaults"
    tokenizer: Tokenizer
    dtype: str
    is_chat: bool
    num_parameters: int

    @property
    def vocab(self) -> int:
        """Ids that may be drawn: no row without a piece, and not the image placeholder where it is the last piece."""
        size = min(self.tokenizer.size, self.config.vocab_size)
        return size - 1 if self.tokenizer.id_of("<image_soft_token>") == size - 1 else size


def load(
    path: Path,
    *,
    dtype: str,
    quant: "QuantPlan | None",
    check: Callable[[TextConfig], None] = lambda config: None,
    progress: Progress | None = None,
    packing: Progress | None = None,
) -> Loaded:
    """Return the model at `path`; the arguments are those of LLM. `check` may refuse it before its weights are read."""
    from gemworks.weights.checkpoint import open_checkpoint
    from gemworks.weights.load import Loader, resolve_dtype
    from gemworks.weights.tokenizer_cache import load_tokenizer

    with open_checkpoint(path) as checkpoint:
        check(checkpoint.config)
        resolved = resolve_dtype(checkpoint, dtype)
        loader = Loader(checkpoint, dtype=dtype, quant=quant)
        tokenizer = load_tokenizer(checkpoint)
        _check_tokenizer(tokenizer, checkpoint)
        return Loaded(
            model=loader.load(progress=progress, packing=packing),
            config=checkpoint.config,
            generation=checkpoint.generation,
            tokenizer=tokenizer,
            dtype=resolved,
            is_chat=bool(checkpoint.is_chat) and tokenizer.start_of_turn_id is not None,
            num_parameters=checkpoint.num_parameters,
        )


def _check_tokenizer(tokenizer: Tokenizer, checkpoint) -> None:
    """Refuse the tokenizer of another model: every id it gives must mean what the model learned."""
    tokenizer.require_rows(checkpoint.config.vocab_size, str(checkpoint.path))
    bos, expected = tokenizer.bos_id, checkpoint.generation.bos_id
    if bos != expected:
        raise CheckpointError(
            f"{checkpoint.path}: <bos> is {bos} in the tokenizer and {expected} in the model's config.\n"
            "They are of different models; put the tokenizer.json of this model beside its weights."
        )
