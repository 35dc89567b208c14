"""A guard: how likely an image violates each of some policies, by ShieldGemma 2.

from gemworks import Guard
guard = Guard("shieldgemma-2-4b-it")
verdict = guard.image("photo.jpg")
print(verdict.flagged, verdict.probabilities)

One forward pass a policy and nothing is drawn: the probability is what Yes has of Yes and No as the next token. The
image goes through the vision tower once, and what comes before the policies' own words is computed once: 336 of some
414 tokens (safety/prompt.py).
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.engine.types import Request
from gemworks.errors import CheckpointError, ConfigError, GemworksWarning, RequestError
from gemworks.llm.loading import Progress
from gemworks.llm.model import LLM
from gemworks.media import Picture, prepare_picture
from gemworks.safety.policies import Policy, policies_of
from gemworks.safety.prompt import common_start, guard_prompt
from gemworks.safety.verdict import DEFAULT_THRESHOLD, Verdict, checked_threshold, yes_probability

if TYPE_CHECKING:
    from gemworks.quant.plan import QuantPlan

DEFAULT_MODEL = "shieldgemma-2-4b-it"

# Tokens of a prompt: 414 with a policy it was trained with, some 1,000 more for the longest one that is taken.
_CONTEXT = 2048

Policies = str | Policy | Mapping[str, str] | Iterable[str | Policy] | None


class Guard:
    """A ShieldGemma 2 that is loaded.

    model: as of LLM. threshold: probability from which on an image is flagged, above 0 and at most 1. dtype, quant,
    embed, kv, context, progress and packing: as of LLM. May be used by many threads at once. Raises what LLM raises,
    and ConfigError where the model does not read images.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        threshold: float = DEFAULT_THRESHOLD,
        dtype: str = "auto",
        quant: "str | QuantPlan | None" = None,
        embed: str | None = None,
        kv: str | None = None,
        context: int | None = None,
        progress: Progress | None = None,
        packing: Progress | None = None,
    ):
        from gemworks.weights.hub import resolve
        from gemworks.weights.vision import vision_config_of

        self.threshold = checked_threshold(threshold)
        path = resolve(model).path
        if (eyes := vision_config_of(path)) is None:
            raise ConfigError(
                f"{model}: a guard must read images, got a model that reads text only.\n"
                "ShieldGemma 2 does: gemworks pull shieldgemma-2-4b-it"
            )
        self._tokens_per_image, self._tile_size = eyes.tokens_per_image, eyes.image_size
        config = _config_json(path)
        if config.get("model_type", "shieldgemma2") != "shieldgemma2":
            _warn_untrained(model, config["model_type"])
        told: dict[str, Any] = {"dtype": dtype, "quant": quant, "embed": embed, "kv": kv}
        # A run ends with its prompt, so no two of them ever need a ring at a time.
        told |= {"context": context or _context_for(config), "max_sequences": 1}
        self.llm = LLM(model, progress=progress, packing=packing, **told)
        self.name = self.llm.name
        self._choices = _yes_and_no(config, self.llm, path)
        window = self.llm.config.local_spec
        self._window = window.window if window else None

    def image(self, source: Any, policies: Policies = None, *, threshold: float | None = None) -> Any:
        """Return the Verdict on an image, or a list of them for a list of images.

        source: a path, bytes, a data URL, a numpy array or a PIL image. policies: None is the three of ShieldGemma 2;
        names of them, Policies of your own, or a mapping of name to text. threshold: instead of the guard's. Raises
        RequestError for policies that are wrong and for an image that cannot be read; to go on after one: `images`.
        """
        if not isinstance(source, list | tuple):
            chosen, limit = self._checked(policies, threshold)
            return self._judge(source, _name_of(source) or "image", chosen, limit)
        verdicts = []
        for verdict in self.images(source, policies, threshold=threshold):
            if isinstance(verdict, RequestError):
                raise verdict
            verdicts.append(verdict)
        return verdicts

    def images(
        self, sources: Iterable[Any], policies: Policies = None, *, threshold: float | None = None
    ) -> Iterator[Verdict | RequestError]:
        """Yield the Verdict on each image, or the RequestError of one that cannot be read, and go on.

        Each is decoded when it is its turn: `sources` may be a generator over any number of them.
        """
        return self._each(sources, *self._checked(policies, threshold))

    def close(self) -> None:
        """End what is being computed and give the memory back; the guard cannot be used afterwards."""
        self.llm.close()
        self.llm.free_vision()

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, policies: Policies, threshold: float | None) -> tuple[tuple[Policy, ...], float]:
        return policies_of(policies), self.threshold if threshold is None else checked_threshold(threshold)

    def _each(
        self, sources: Iterable[Any], policies: Sequence[Policy], threshold: float
    ) -> Iterator[Verdict | RequestError]:
        for i, source in enumerate(sources):
            try:
                verdict = self._judge(source, _name_of(source) or f"image {i}", policies, threshold)
            except RequestError as error:
                verdict = error
            yield verdict

    def _judge(self, source: Any, name: str, policies: Sequence[Policy], threshold: float) -> Verdict:
        picture = prepare_picture(source, name=name, tile_size=self._tile_size)
        return Verdict(
            image=name,
            probabilities=self._probabilities(picture, policies),
            threshold=threshold,
            width=picture.width,
            height=picture.height,
        )

    def _probabilities(self, picture: Picture, policies: Sequence[Policy]) -> dict[str, float]:
        """Return how likely the picture violates each policy, by name."""
        eyes = self.llm.eyes
        assert eyes is not None
        told = {"tokens_per_image": self._tokens_per_image}
        prompts = [guard_prompt(self.llm.tokenizer, policy, **told) for policy in policies]
        spans = eyes.spans(prompts[0], [picture])  # of every prompt: the image is before what differs
        ids = [prompt.ids for prompt in prompts]
        if self._window is not None and len(ids) > 1 and max(map(len, ids)) > self._window:
            # The local layers of a prompt's end no longer hold what the next policy's first token reads. A request that
            # ends where the prompts part keeps it, and computes nothing twice.
            ids.insert(0, common_start(ids))
        asked = [Request(prompt=tuple(one), kind="choose", choices=self._choices, spans=spans) for one in ids]
        scores = self._ask(asked)[-len(policies) :]
        return {policy.name: yes_probability(*told) for policy, told in zip(policies, scores, strict=True)}

    def _ask(self, requests: list[Request]) -> list[list[float]]:
        """Return the log-probabilities of each request's choices."""
        handles = self.llm._engine.submit_all(requests)
        try:
            for handle in handles:
                for _ in handle:
                    pass
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return [[score.logprob for score in handle.scores or [] if score is not None] for handle in handles]


def _name_of(source: Any) -> str | None:
    """How results and errors call an image that is a file; None for what has no name."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        return None
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def _config_json(path: Path) -> dict[str, Any]:
    """config.json of the model at `path`; {} for a GGUF file, which has none."""
    from gemworks.weights.config_json import read_json

    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(file) if file.is_file() and path.suffix != ".gguf" else {}


def _context_for(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    limit = text.get("max_position_embeddings") if isinstance(text, dict) else None
    return min(_CONTEXT, limit) if isinstance(limit, int) else _CONTEXT


def _yes_and_no(config: Mapping[str, Any], llm: LLM, path: Path) -> tuple[int, int]:
    """The ids of the two answers: what config.json says, else the pieces of these names (10,784 and 3,771)."""
    found = []
    for field, piece in (("yes_token_index", "Yes"), ("no_token_index", "No")):
        token_id = config.get(field)
        token_id = llm.tokenizer.id_of(piece) if token_id is None else token_id
        if type(token_id) is not int or not 0 <= token_id < llm.config.vocab_size:
            got = "none" if token_id is None else repr(token_id)
            raise CheckpointError(
                f'{path}: a guard must have a token for "{piece}", {field} of config.json or a piece of the '
                f"vocabulary, got {got:.80}.\nFetch config.json and tokenizer.json of ShieldGemma 2."
            )
        found.append(token_id)
    yes, no = found
    return yes, no


def _warn_untrained(model: str | Path, model_type: Any) -> None:
    warnings.warn(
        f"{model} is a {model_type} model: it was not trained to judge images, and what it says of them is a guess.\n"
        "ShieldGemma 2 was: gemworks pull shieldgemma-2-4b-it",
        GemworksWarning,
        stacklevel=3,
    )
