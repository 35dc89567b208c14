"""The offline API: a model that is loaded, answers texts and conversations, and scores them."""

import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from gemworks.engine.memory import KVPlan
from gemworks.engine.types import Request, SamplingParams
from gemworks.errors import ConfigError, RequestError
from gemworks.llm.answers import Answer, Chunk, PromptLogprobs
from gemworks.llm.drafts import LONGEST_DRAFT, new_proposer
from gemworks.llm.loading import Progress, load
from gemworks.llm.sizes import DEFAULT_CONTEXT, KV_TYPES, engine_sizes
from gemworks.memory import without_collections
from gemworks.model.config import TextConfig
from gemworks.tokenizer.chat import render_chat, render_plain

if TYPE_CHECKING:
    from gemworks.engine.handle import Handle
    from gemworks.quant.plan import QuantPlan

Message = dict[str, Any]


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
    the text so far, the name of a smaller model lets that one guess. adapter: a LoRA adapter that every request has
    unless it names another. progress(bytes_done, bytes_total)
    is called while loading, `packing` (default: the same) while weights are packed for this machine's first start.
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
            told = {"max_sequences": max_sequences, "draft": LONGEST_DRAFT if draft else 0}
            sizes.append(engine_sizes(config, context=self.context, kv=stored, **told))

        loaded = load(resolved.path, dtype=dtype, quant=plan, check=size, progress=progress, packing=packing)
        self.config, self.generation, self.tokenizer = loaded.config, loaded.generation, loaded.tokenizer
        self.dtype, self.is_chat, self.num_parameters = loaded.dtype, loaded.is_chat, loaded.num_parameters
        self._defaults = dict(created.sampling) if created else {}
        self._opening = _opening(created)
        self._default_adapter: str | None = None
        guesses = None
        if draft is not None:
            told = {"vocab": loaded.vocab, "context": self.context, "tokenizer": self.tokenizer}
            guesses = new_proposer(draft, **told, load=lambda name: load(resolve(name).path, dtype=dtype, quant=plan))
        pools = sizes[0].runner_arguments()
        if kv is None:
            pools["kv_dtype"] = None  # as the weights are
        self._engine = Engine(
            Runner(loaded.model, vocab=loaded.vocab, programs=programs, **pools), new_proposer=guesses
        )
        self.load_s = time.perf_counter() - started
        if adapter is not None:
            self._default_adapter = self.load_adapter(adapter)

    def generate(self, prompt: str | Sequence[int] | Sequence[str], **sampling) -> Any:
        """Continue plain text (BOS is added), or token ids as they are; return a Completion, or a list for a list.

        Texts of a list are computed together. sampling: fields of SamplingParams, stop (a string or several), n
        (answers to a prompt: a list of n Completions), adapter (a name given to `load_adapter`) and mask, priority, key
        as in engine.types.Request. What is not given comes from the model. For a list, max_tokens may be a list too.
        """
        if _is_list_of_texts(prompt):
            return self._all([self._prompt_ids(text) for text in prompt], sampling)
        return self._ask(self._prompt_ids(prompt), **sampling).last()

    def chat(self, messages: Sequence, *, stream: bool = False, **sampling) -> Any:
        """Answer a conversation of {"role", "content"} messages; a list of conversations gives a list of Completions.

        stream=True returns an iterator of Chunks instead.
        """
        if messages and not isinstance(messages[0], dict):
            if stream:
                raise RequestError("stream takes one conversation, got a list of them; call it for each.")
            return self._all([self._prompt_ids(conversation) for conversation in messages], sampling)
        ask = self._ask(self._prompt_ids(messages), **sampling)
        return ask.chunks() if stream else ask.last()

    def stream(self, prompt: str | Sequence[int] | Sequence[Message], **sampling) -> Iterator[Chunk]:
        """Yield the answer to a text (continued as it is) or a conversation as it is made.

        It is computed from here on, beside what else was asked; closing the iterator stops it. A prompt that begins as
        an earlier one did (a chat's next turn) computes only what is new. Errors in the request are raised here, before
        the first chunk.
        """
        return self._ask(self._prompt_ids(prompt), **sampling).chunks()

    def astream(self, prompt: str | Sequence[int] | Sequence[Message], **sampling) -> AsyncIterator[Chunk]:
        """As `stream`, for an event loop: `async for chunk in llm.astream(...)`."""
        return self._ask(self._prompt_ids(prompt), **sampling).achunks()

    def logprobs(self, text: str | Sequence[int] | Sequence[str], *, top: int = 0) -> Any:
        """Return the PromptLogprobs of a text (after BOS), with the `top` likeliest tokens at each place.

        A list of texts gives a list.
        """
        params = SamplingParams(top_logprobs=top)
        texts = text if _is_list_of_texts(text) else [text]
        prompts = [self._prompt_ids(one) for one in texts]
        handles = self._submit_all([Request(prompt=tuple(ids), params=params, kind="score") for ids in prompts])
        scored = [PromptLogprobs(ids, _finished(one).scores or []) for ids, one in zip(prompts, handles, strict=True)]
        return scored if _is_list_of_texts(text) else scored[0]

    def embed(self, text: str | Sequence[int] | Sequence[str]) -> np.ndarray:
        """Return the mean of a text's final hidden states (after BOS), [model_dim] fp32; of a list [texts, model_dim].

        Gemma 3 was not trained to embed: vectors of like texts are near each other, less so than an embedding model's.
        """
        texts = text if _is_list_of_texts(text) else [text]
        requests = [Request(prompt=tuple(self._prompt_ids(one)), kind="embed") for one in texts]
        vectors = [_finished(handle).embedding for handle in self._submit_all(requests)]
        return np.stack(vectors) if _is_list_of_texts(text) else vectors[0]

    def load_adapter(self, path: str | Path, name: str | None = None) -> str:
        """Load a LoRA adapter (a PEFT directory) beside the model and return its name, for `adapter=` of a request.

        The first one decides how much memory adapters get: MAX_ADAPTERS of its rank, or of 16 where that is more.
        Raises CheckpointError or ConfigError where it does not fit this model, CapacityError where there is no room.
        """
        from gemworks.weights.adapter import read_adapter

        name = name or Path(path).name
        self._engine.load_adapter(name, read_adapter(path, self.config))
        return name

    def unload_adapter(self, name: str) -> None:
        """Give an adapter's memory to the next one."""
        self._engine.unload_adapter(name)

    def close(self) -> None:
        """End what is being computed; the model cannot be used afterwards."""
        self._engine.close()

    def _ask(self, ids: list[int], *, stop: str | Sequence[str] | None = None, **told) -> "_Ask":
        request, stops = self._request(ids, stop, told)
        return _Ask(self, self._engine.submit(request), stops)

    def _all(self, prompts: list[list[int]], told: dict[str, Any]) -> list:
        """Answer prompts together; what one of them has wrong is raised before any is computed."""
        told = dict(told)
        each, stop = told.pop("max_tokens", None), told.pop("stop", None)
        limits = list(each) if isinstance(each, Sequence) else [each] * len(prompts)
        if len(limits) != len(prompts):
            raise RequestError(
                f"max_tokens must be one number or one for each prompt, got {len(limits)} for {len(prompts)}."
            )
        made = [
            self._request(ids, stop, told | {"max_tokens": limit}) for ids, limit in zip(prompts, limits, strict=True)
        ]
        handles = self._submit_all([request for request, _ in made])
        return [_Ask(self, handle, stops).last() for handle, (_, stops) in zip(handles, made, strict=True)]

    def _submit_all(self, requests: list[Request]) -> "list[Handle]":
        for request in requests:
            self._engine.check(request)
        return [self._engine.submit(request) for request in requests]

    def _request(self, ids: list[int], stop, told: dict[str, Any]) -> tuple[Request, tuple[str, ...]]:
        """Return the engine's request and the stop strings of a call."""
        own = {name: told[name] for name in _REQUEST_FIELDS if told.get(name) is not None}
        own.setdefault("adapter", self._default_adapter)
        params = self.sampling(**{name: value for name, value in told.items() if name not in _REQUEST_FIELDS})
        wanted: Any = self._defaults.get("stop", ()) if stop is None else stop
        stops = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if not all(isinstance(s, str) and s for s in stops):
            raise RequestError(f"stop must be texts of at least one character, got {wanted!r}.")
        return Request(prompt=tuple(ids), params=params, **own), stops

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
        params["stop_ids"] = tuple(sorted(ends))
        return SamplingParams(**params)

    def _prompt_ids(self, prompt: str | Sequence) -> list[int]:
        if isinstance(prompt, str):
            return render_plain(self.tokenizer, prompt)
        if prompt and isinstance(prompt[0], dict):
            if not self.is_chat:
                raise RequestError(
                    f"{self.name} is a pre-trained model without a chat form; it continues text.\n"
                    "Use generate(text), or load the instruction-tuned model of the same size (its name ends in -it)."
                )
            own, messages = self._opening, list(prompt)
            if messages[0].get("role") == "system":  # the caller's replaces the model's
                own = [messages.pop(0)] + [turn for turn in own if turn["role"] != "system"]
            return render_chat(self.tokenizer, own + messages)
        if all(isinstance(i, int) for i in prompt):
            return list(prompt)
        raise RequestError("a prompt is a text, a list of token ids or a list of messages with role and content.")


class _Ask:
    """A call in progress: the engine's handle and the texts that its answers become."""

    def __init__(self, llm: LLM, handle: "Handle", stops: tuple[str, ...]):
        request = handle.request
        self._handle, self._load_s = handle, llm.load_s
        self._answers = [Answer(llm.tokenizer, len(request.prompt), request.params, stops) for _ in range(request.n)]

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield pieces of text as they come; stop the engine where a stop string ends the last answer."""
        events = iter(self._handle)
        try:
            for event in events:
                if (chunk := self._push(event)) is not None:
                    yield chunk
                if self._is_done():
                    return
        finally:
            events.close()

    async def achunks(self) -> AsyncGenerator[Chunk, None]:
        """As `chunks`, for an event loop."""
        events = aiter(self._handle)
        try:
            async for event in events:
                if (chunk := self._push(event)) is not None:
                    yield chunk
                if self._is_done():
                    return
        finally:
            await events.aclose()

    def last(self) -> Any:
        """Wait for the end and return the Completion, or the list of n."""
        ended = {chunk.index: chunk.completion for chunk in self.chunks() if chunk.completion is not None}
        return ended[0] if len(self._answers) == 1 else [ended[i] for i in range(len(self._answers))]

    def _push(self, event) -> Chunk | None:
        answer = self._answers[event.index]
        if answer.is_done:
            return None  # events that were on their way when a stop string ended it
        timings = dataclasses.replace(self._handle.timings(event.index), load_s=self._load_s)
        chunk = answer.push(event, timings)
        if answer.is_done and event.finish_reason is None:
            self._handle.cancel(event.index)
        return chunk

    def _is_done(self) -> bool:
        return all(answer.is_done for answer in self._answers)


def _finished(handle: "Handle") -> "Handle":
    for _ in handle:
        pass
    return handle


# Of a call's keywords, those that are the request's and not the sampler's.
_REQUEST_FIELDS = ("n", "key", "priority", "deadline_s", "adapter", "mask", "name", "use_cache")


def _is_list_of_texts(prompt: str | Sequence) -> TypeGuard[Sequence[str]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], str)


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


def _opening(modelfile) -> list[Message]:
    """The messages every conversation with a created model begins with."""
    if modelfile is None:
        return []
    turns = [("system", modelfile.system)] if modelfile.system else []
    return [{"role": role, "content": text} for role, text in (*turns, *modelfile.messages)]
