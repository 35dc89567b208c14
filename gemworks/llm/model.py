"""The offline API: a model that is loaded, answers texts and conversations, and scores them."""

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from gemworks.engine.memory import KV_TYPES, KVPlan
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.engine.types import Request, RequestKind, SamplingParams
from gemworks.errors import ConfigError, RequestError
from gemworks.llm.answers import Chunk, PromptLogprobs
from gemworks.llm.asking import Ask, Prepared
from gemworks.llm.calling import KEYWORDS, calling_of
from gemworks.llm.drafts import new_proposer
from gemworks.llm.eyes import Eyes, open_eyes
from gemworks.llm.loading import Progress, load
from gemworks.llm.prompts import Message, Prompter
from gemworks.llm.sizes import DEFAULT_CONTEXT, engine_sizes
from gemworks.llm.soft_prompts import SoftPrompts
from gemworks.llm.structured import form_of
from gemworks.memory import without_collections
from gemworks.model.config import TextConfig
from gemworks.text.toolcalls.control import ControlTokens

if TYPE_CHECKING:
    from gemworks.engine.handle import Handle
    from gemworks.engine.live import EngineStats
    from gemworks.quant.plan import QuantPlan
    from gemworks.text.grammar import GrammarEngine
    from gemworks.text.toolcalls.auto import CallMasks


class LLM:
    """A model ready to answer.

    model: a name (gemma3:1b, google/gemma-3-1b-it, tiny, one you created), a directory or a .gguf file.
    dtype: "auto" keeps bf16 or fp32 as stored; "bfloat16", "float32". context: longest prompt and answer together,
    in tokens; default min(8,192, the model's limit).
    quant: the format matrices are rounded to on the way in, "int4-b32" or "int4-b32,embed=int8" or a QuantPlan, with
    `embed` for the embedding and head; a model that is stored quantized needs none. kv: what keys and values are stored
    as, "bfloat16" (default), "int8" (half the memory and, at long contexts, more speed) or "float32" (the default of an
    fp32 model). max_sequences: how many answers are computed together (default: as many as cost little memory, 1 to
    8); more wait. draft: speculation, which makes answers quicker and changes nothing in them: "lookup" guesses from
    the text so far, the name of a smaller model lets that one guess. adapter: an adapter (LoRA, DoRA or a soft prompt)
    that every request has unless it names another; None: the created model's, if it has one. progress(bytes_done,
    bytes_total) is called while loading, `packing` (default: the same) while weights are packed for this machine's
    first start.
    May be used by many threads and event loops at once.
    Raises ConfigError, CheckpointError, StorageError or DownloadError.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        context: int | None = None,
        quant: "str | QuantPlan | None" = None,
        embed: str | None = None,
        kv: str | None = None,
        max_sequences: int | None = None,
        draft: str | None = None,
        adapter: str | Path | None = None,
        progress: Progress | None = None,
        packing: Progress | None = None,
    ):
        if kv is not None and kv not in KV_TYPES:
            raise ConfigError(f'kv must be one of {", ".join(KV_TYPES)}, got "{kv}".')
        started = time.perf_counter()
        # What needs jax is imported here, so that `import gemworks` stays quick. Compiled programs are first: they load
        # in a thread while the rest is imported and read.
        with without_collections():
            from gemworks.engine.programs import ProgramStore

            programs = ProgramStore(f"{model} {dtype} {context} {quant} {embed} {kv} {max_sequences} {draft}")
            programs.preload()
            from gemworks.engine.engine import Engine
            from gemworks.engine.runner import Runner
            from gemworks.weights.hub import resolve
        plan = _plan(quant, embed)
        resolved = resolve(model)
        self.name, created = resolved.name, resolved.modelfile
        asked = created.context if context is None and created else context
        self.context = 0
        sizes: list[KVPlan] = []

        def size(config: TextConfig) -> None:
            self.context = _resolve_context(asked, config.max_positions, self.name)
            stored = kv or ("float32" if dtype == "float32" else "bfloat16")
            told = {"max_sequences": max_sequences, "draft": DRAFT_LENGTHS[-1] if draft else 0}
            sizes.append(engine_sizes(config, context=self.context, kv=stored, **told))

        loaded = load(resolved.path, dtype=dtype, quant=plan, check=size, progress=progress, packing=packing)
        self.config, self.generation, self.tokenizer = loaded.config, loaded.generation, loaded.tokenizer
        self.dtype, self.is_chat, self.num_parameters = loaded.dtype, loaded.is_chat, loaded.num_parameters
        self._defaults = dict(created.sampling) if created else {}
        self._vocab = loaded.vocab
        self._open_eyes = cache(partial(open_eyes, resolved.path, dtype=dtype))
        self._prompter = Prompter(self.tokenizer, self.name, self._open_eyes, opening=_opening(created, self.is_chat))
        self._default_adapter, guesses = None, None
        self._soft_prompts = SoftPrompts()
        adapter = created.adapter if adapter is None and created else adapter
        if draft is not None:
            told = {"vocab": loaded.vocab, "context": self.context, "tokenizer": self.tokenizer}
            guesses = new_proposer(draft, **told, load=lambda name: load(resolve(name).path, dtype=dtype, quant=plan))
        pools: dict[str, Any] = {**sizes[0].runner_arguments(), **({"kv_dtype": None} if kv is None else {})}
        runner = Runner(loaded.model, vocab=loaded.vocab, programs=programs, **pools)
        self._engine = Engine(runner, new_proposer=guesses)
        self.load_s = time.perf_counter() - started
        if adapter is not None:
            self._default_adapter = self.load_adapter(adapter)

    @property
    def eyes(self) -> Eyes | None:
        """What reads images, None for a model that reads text only. Its tower is loaded when the first image comes.

        Raises CheckpointError where the model's vision half is not Gemma 3's: a text does not need it.
        """
        return self._open_eyes()

    def free_vision(self) -> None:
        """Give the vision tower's memory back; the next image that was not seen before loads it again."""
        if self._open_eyes.cache_info().currsize and (eyes := self._open_eyes()) is not None:
            eyes.free()

    def generate(self, prompt: str | Sequence, **sampling) -> Any:
        """Continue plain text (BOS is added), or token ids as they are; return a Completion, or a list for a list.

        A list that has pictures among its texts is one prompt, in its order; a list of texts or of lists is several.
        """
        if _is_list_of_prompts(prompt):
            return self._all(prompt, sampling)
        return self._ask(prompt, sampling).last()

    def chat(self, messages: Sequence, *, stream: bool = False, **sampling) -> Any:
        """Answer a conversation of {"role", "content"} messages; a list of conversations gives a list of Completions.

        schema=... (a JSON schema, a pydantic model, a type) makes the answer JSON of it, `completion.parsed` the value;
        grammar=... any other form (docs/structured.md). tools=[...] declares functions that the answer may call
        (completion.tool_calls), tool_choice, parallel_tool_calls and tool_style say how (docs/calls.md).
        Content is a text or a list of parts, of which some may be images or videos (docs/images.md);
        pan_and_scan=True, or a PanAndScan, reads pictures that are far from square in crops too. stream=True returns an
        iterator of Chunks instead.
        """
        if messages and not isinstance(messages[0], dict):
            if stream:
                raise RequestError("stream takes one conversation, got a list of them; call it for each.")
            return self._all(messages, sampling)
        ask = self._ask(messages, sampling)
        return ask.chunks() if stream else ask.last()

    def stream(self, prompt: str | Sequence, **sampling) -> Iterator[Chunk]:
        """Yield the answer to a text (continued as it is) or a conversation as it is made.

        It is computed from here on, beside what else was asked; closing the iterator stops it. A prompt that begins as
        an earlier one did (a chat's next turn) computes only what is new. Errors in the request are raised here, before
        the first chunk.
        """
        return self._ask(_one_prompt(prompt), sampling).chunks()

    def astream(self, prompt: str | Sequence, **sampling) -> AsyncIterator[Chunk]:
        """As `stream`, for an event loop: `async for chunk in llm.astream(...)`. Pictures are decoded in the call."""
        return self._ask(_one_prompt(prompt), sampling).achunks()

    def logprobs(self, text: str | Sequence[int] | Sequence[str], *, top: int = 0) -> Any:
        """Return the PromptLogprobs of a text (after BOS), with the `top` likeliest tokens at each place.

        A list of texts gives a list.
        """
        params = SamplingParams(top_logprobs=top)
        texts = text if _is_list_of_texts(text) else [text]
        prompts = [self._prompter.render(one).ids for one in texts]
        asked = [Request(prompt=tuple(ids), params=params, kind="score") for ids in prompts]
        handles = self._engine.submit_all(asked)
        scored = [PromptLogprobs(ids, _finished(one).scores or []) for ids, one in zip(prompts, handles, strict=True)]
        return scored if _is_list_of_texts(text) else scored[0]

    def embed(self, text: str | Sequence[int] | Sequence[str]) -> np.ndarray:
        """Return the mean of a text's final hidden states (after BOS), [model_dim] fp32; of a list [texts, model_dim].

        Gemma 3 was not trained to embed: vectors of like texts are near each other, less so than an embedding model's.
        """
        texts = text if _is_list_of_texts(text) else [text]
        requests = [Request(prompt=tuple(self._prompter.render(one).ids), kind="embed") for one in texts]
        vectors = [_finished(handle).embedding for handle in self._engine.submit_all(requests)]
        return np.stack(vectors) if _is_list_of_texts(text) else vectors[0]

    def load_adapter(self, path: str | Path, name: str | None = None) -> str:
        """Load an adapter (a PEFT directory) beside the model and return its name, for `adapter=` of a request.

        LoRA, DoRA, or a soft prompt. The first of matrices decides how much memory adapters get: MAX_ADAPTERS of its
        rank, or of 16 where that is more. Raises CheckpointError or ConfigError where it does not fit this model,
        CapacityError where there is no room.
        """
        from gemworks.weights import soft_prompt
        from gemworks.weights.adapter import read_adapter

        name = name or Path(path).name
        if soft_prompt.is_soft_prompt(path):
            self._soft_prompts.load(name, soft_prompt.read_soft_prompt(path, self.config).rows_PD)
        else:
            self._engine.load_adapter(name, read_adapter(path, self.config))
            self._soft_prompts.unload(name)  # a name means one adapter, the last one loaded
        return name

    def unload_adapter(self, name: str) -> None:
        """Give an adapter's memory to the next one."""
        if name in self._soft_prompts:
            return self._soft_prompts.unload(name)
        self._engine.unload_adapter(name)

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compile every program that requests may need, so that none waits for one. progress(done, total).

        A second process finds them in the compile cache. Call it before the first request.
        """
        self._engine.warm_up(progress)

    def stats(self) -> "EngineStats":
        """Return what the engine counts: requests, tokens, cached tokens, pages, those who wait."""
        return self._engine.stats()

    def close(self) -> None:
        """End what is being computed; the model cannot be used afterwards."""
        self._engine.close()

    def prepare(
        self, prompt: str | Sequence, *, kind: RequestKind = "generate", score_from: int = 1, **told
    ) -> Prepared:
        """Return a call that was checked in all it says and not begun: `submit` begins it.

        `prompt` and the keywords are those of `stream`. kind "score" and "embed" are what `logprobs` and `embed` ask,
        the former for tokens from `score_from` on. Raises RequestError or CapacityError.
        """
        made = self._prepared(prompt, told, kind=kind, score_from=score_from)
        self._engine.check(made.request)
        return made

    def submit(self, prepared: Prepared) -> Ask:
        """Begin a prepared call and return it: `chunks`, `achunks` or `last` read its answers, `finish` other kinds.

        It waits for nothing, so an event loop may call it.
        """
        return self._asked(self._engine.submit(prepared.request), prepared)

    def _ask(self, prompt: str | Sequence, told: dict[str, Any]) -> Ask:
        return self.submit(self._prepared(prompt, told))

    def _all(self, prompts: Sequence, told: dict[str, Any]) -> list:
        """Answer prompts together; what one of them has wrong is raised before any is computed."""
        told = dict(told)
        each = told.pop("max_tokens", None)
        limits = list(each) if isinstance(each, Sequence) else [each] * len(prompts)
        if len(limits) != len(prompts):
            raise RequestError(
                f"max_tokens must be one number or one for each prompt, got {len(limits)} for {len(prompts)}."
            )
        made = [
            self._prepared(prompt, told | {"max_tokens": limit}) for prompt, limit in zip(prompts, limits, strict=True)
        ]
        handles = self._engine.submit_all([one.request for one in made])
        return [ask.last() for ask in [self._asked(handle, one) for handle, one in zip(handles, made, strict=True)]]

    def _asked(self, handle: "Handle", prepared: Prepared) -> Ask:
        return Ask(handle, prepared, tokenizer=self.tokenizer, load_s=self.load_s)

    def _prepared(self, prompt: str | Sequence, told: dict[str, Any], **kind: Any) -> Prepared:
        told = dict(told)
        stop, crops = told.pop("stop", None), told.pop("pan_and_scan", None)
        form = form_of(told.pop("schema", None), told.pop("grammar", None))
        calling = calling_of(self._call_tokens, {name: told.pop(name, None) for name in KEYWORDS})
        own = kind | {name: told[name] for name in _REQUEST_FIELDS if told.get(name) is not None}
        own.setdefault("adapter", self._default_adapter)
        if (wanted := calling.grammar(form)) is not None and calling.is_free(form):
            own["mask"] = self._call_masks.mask(wanted, calling.names, calling.begins)
        elif wanted is not None:
            own["mask"] = self._grammars.constrain(wanted)
        params = self.sampling(**{name: value for name, value in told.items() if name not in _REQUEST_FIELDS})
        asked: Any = self._defaults.get("stop", ()) if stop is None else stop
        stops = (asked,) if isinstance(asked, str) else tuple(asked)
        if not all(isinstance(s, str) and s for s in stops):
            raise RequestError(f"stop must be texts of at least one character, got {asked!r}.")
        rendered = self._prompter.render(prompt, pan_and_scan=crops, calling=calling)
        request = Request(prompt=tuple(rendered.ids), spans=rendered.spans, params=params, **own)
        request = self._soft_prompts.before(request)
        return Prepared(request, rendered, stops, form, calling)

    @cached_property
    def _call_tokens(self) -> ControlTokens | None:
        return ControlTokens.of(self.tokenizer) if self.is_chat else None

    @cached_property
    def _grammars(self) -> "GrammarEngine":
        """What makes masks of grammars; it reads the vocabulary, so it is made for the first call that needs it."""
        from gemworks.text.grammar import GrammarEngine

        return GrammarEngine(self.tokenizer, vocab=self._vocab, end_ids=self.sampling().stop_ids)

    @cached_property
    def _call_masks(self) -> "CallMasks":
        """What makes masks of text that may become a call; as `_grammars`, for the first that needs it."""
        from gemworks.text.toolcalls.auto import CallMasks

        return CallMasks(self._grammars, self.tokenizer, vocab=self._vocab)

    def sampling(self, **overrides) -> SamplingParams:
        """Return the parameters a request with these overrides would use. None means "as the model says"."""
        known = {f.name for f in dataclasses.fields(SamplingParams)}
        if unknown := sorted(set(overrides) - known):
            raise RequestError(f"unknown sampling parameter {unknown[0]}; known are stop, {', '.join(sorted(known))}.")
        own = self.generation
        params: dict[str, Any] = {
            "temperature": own.temperature if own.do_sample else 0.0,
            "top_k": own.top_k,
            "top_p": own.top_p,
        }
        params |= {name: value for name, value in self._defaults.items() if name in known}
        params |= {name: value for name, value in overrides.items() if value is not None}
        ends = {*own.eos_ids, *params.get("stop_ids", ())}
        if self.is_chat and self.tokenizer.end_of_turn_id is not None:
            ends.add(self.tokenizer.end_of_turn_id)
        if self._call_tokens is not None:
            ends.add(self._call_tokens.stop_id)
        params["stop_ids"] = tuple(sorted(ends))
        return SamplingParams(**params)


def _finished(handle: "Handle") -> "Handle":
    for _ in handle:
        pass
    return handle


# Of a call's keywords, those that are the request's and not the sampler's.
_REQUEST_FIELDS = ("n", "key", "priority", "deadline_s", "adapter", "mask", "name", "use_cache")


def _is_list_of_texts(prompt: str | Sequence) -> TypeGuard[Sequence[str]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], str)


def _is_list_of_prompts(prompt: str | Sequence) -> TypeGuard[Sequence]:
    """Whether a list is several prompts: of texts alone, or of lists."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return all(isinstance(one, str) for one in prompt) or all(isinstance(one, (list, tuple)) for one in prompt)


def _one_prompt(prompt: str | Sequence) -> str | Sequence:
    if _is_list_of_prompts(prompt):
        raise RequestError("stream takes one prompt, got a list of them; call it for each.")
    return prompt


def _plan(quant: "str | QuantPlan | None", embed: str | None) -> "QuantPlan | None":
    """The plan that `quant` and `embed` describe: FORMAT, then after commas embed=FORMAT and PATTERN=FORMAT."""
    if quant is None:
        if embed is not None:
            raise ConfigError("embed says how the embedding is quantized, and needs quant for the other matrices.")
        return None
    if not isinstance(quant, str):
        if embed is not None:
            raise ConfigError("embed goes with a quant given as text; a QuantPlan says itself what the table becomes.")
        return quant
    from gemworks.ops.weight import FORMATS
    from gemworks.quant.plan import QuantPlan

    format, *rules = (part.strip() for part in quant.split(","))
    for rule in [rule for rule in rules if rule.startswith("embed=")]:
        rules.remove(rule)
        embed = embed or rule.removeprefix("embed=")
    for name, value in (("quant", format), ("embed", embed)):
        if value is not None and value not in FORMATS:
            raise ConfigError(f'{name} must be one of {", ".join(FORMATS)}, got "{value}".')
    # Rows of the table are looked up one by one, and it is also the head: 8 bits cost little and keep what is rare.
    return QuantPlan.parse(format, embed or ("int8" if format.startswith("int") else format), rules)


def _resolve_context(context: int | None, limit: int, name: str) -> int:
    if context is None:
        return min(DEFAULT_CONTEXT, limit)
    if not 2 <= context <= limit:
        raise ConfigError(f"context must be between 2 and {limit:,} tokens for {name}, got {context:,}.")
    return context


def _opening(modelfile, is_chat: bool) -> list[Message] | None:
    """The messages every conversation with a created model begins with; None for a model without a chat form."""
    if modelfile is None or not is_chat:
        return [] if is_chat else None
    turns = [("system", modelfile.system)] if modelfile.system else []
    return [{"role": role, "content": text} for role, text in (*turns, *modelfile.messages)]
