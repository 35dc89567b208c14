"""Text in, text out, in one process: the offline Python API.

    from gemworks import LLM
    llm = LLM("gemma3:1b")
    print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
    for chunk in llm.stream("Once upon a time", max_tokens=50):
        print(chunk.text, end="")

An `LLM` answers one request at a time, from one thread. A list of prompts is answered one after the other.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from gemworks.engine.types import FinishReason, SamplingParams, Timings, TokenLogprob
from gemworks.errors import CheckpointError, ConfigError, RequestError
from gemworks.memory import without_collections
from gemworks.text.stops import StopMatcher
from gemworks.tokenizer.chat import render_chat, render_plain
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemworks.quant.plan import QuantPlan

# Reserved when the model is loaded: 43 MiB for 1B, 276 for 4B, 1,056 for 27B. `context=` goes to the model's limit.
DEFAULT_CONTEXT = 8192

KV_TYPES = ("bfloat16", "int8", "float32")

Message = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished answer. `text` ends before a stop string; `token_ids` are all tokens drawn, without the stop id."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason = "stop"
    stop_string: str | None = None  # which stop string ended it
    logprobs: list[TokenLogprob] | None = None
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of an answer, never half a character; the last one has `finish_reason` and the whole `completion`."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Natural-log probability of every token of a text given those before it; None for the first (<bos>)."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]

    @property
    def total(self) -> float:
        """Log-probability of the whole text."""
        return sum(score.logprob for score in self.logprobs if score is not None)


class LLM:
    """A model ready to answer.

    model: a name (gemma3:1b, google/gemma-3-1b-it, tiny, one you created), a directory or a .gguf file.
    dtype: "auto" keeps bf16 or fp32 as stored; "bfloat16", "float32". context: longest prompt and answer together,
    in tokens; default min(8,192, the model's limit).
    quant: the format matrices are rounded to on the way in, "int4-b32" or "int4-b32,embed=int8" or a QuantPlan, with
    `embed` for the embedding and head; a model that is stored quantized needs none. kv: what keys and values are stored
    as, "bfloat16" (default), "int8" (half the memory and, at long contexts, more speed) or "float32" (the default of an
    fp32 model). progress(bytes_done, bytes_total)
    is called while loading, `packing` (default: the same) while weights are packed for this machine's first start.
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
        adapter: str | Path | None = None,
        progress: Progress | None = None,
        packing: Progress | None = None,
    ):
        _refuse_what_comes_later(adapter)
        if kv is not None and kv not in KV_TYPES:
            raise ConfigError(f'kv must be one of {", ".join(KV_TYPES)}, got "{kv}".')
        started = time.perf_counter()
        # What needs jax is imported here, so that `import gemworks` stays quick. Compiled programs are first: they load
        # in a thread while the rest is imported and read.
        with without_collections():
            from gemworks.engine.programs import ProgramStore

            programs = ProgramStore(f"{model} {dtype} {context} {quant} {embed} {kv}")
            programs.preload()
            from gemworks.engine.engine import Engine
            from gemworks.engine.runner import Runner
            from gemworks.weights.checkpoint import open_checkpoint
            from gemworks.weights.hub import resolve
            from gemworks.weights.load import Loader, resolve_dtype
            from gemworks.weights.tokenizer_cache import load_tokenizer
        plan = _plan(quant, embed)
        resolved = resolve(model)
        self.name, created = resolved.name, resolved.modelfile
        context = created.context if context is None and created else context
        with open_checkpoint(resolved.path) as checkpoint:
            self.config = checkpoint.config
            self.generation = checkpoint.generation
            self.context = _resolve_context(context, self.config.max_positions, self.name)
            self.dtype = resolve_dtype(checkpoint, dtype)
            loader = Loader(checkpoint, dtype=dtype, quant=plan)
            self.tokenizer = load_tokenizer(checkpoint)
            _check_tokenizer(self.tokenizer, checkpoint)
            weights = loader.load(progress=progress, packing=packing)
            self.is_chat = bool(checkpoint.is_chat) and self.tokenizer.start_of_turn_id is not None
            self.num_parameters = checkpoint.num_parameters
        self._defaults = dict(created.sampling) if created else {}
        self._opening = _opening(created)
        runner = Runner(weights, context=self.context, kv_dtype=kv, programs=programs)
        self._engine = Engine(runner, vocab=_sampled_vocab(self.tokenizer, self.config))
        self.load_s = time.perf_counter() - started

    def generate(self, prompt: str | Sequence[int] | Sequence[str], **sampling) -> Any:
        """Continue plain text (BOS is added), or token ids as they are; return a Completion, or a list for a list.

        sampling: fields of SamplingParams, and stop (a string or several). What is not given comes from the model.
        """
        if _is_list_of_texts(prompt):
            return [self.generate(text, **sampling) for text in prompt]
        return _last(self._stream_ids(self._prompt_ids(prompt), **sampling))

    def chat(self, messages: Sequence, *, stream: bool = False, **sampling) -> Any:
        """Answer a conversation of {"role", "content"} messages; a list of conversations gives a list of Completions.

        stream=True returns an iterator of Chunks instead.
        """
        if messages and not isinstance(messages[0], dict):
            if stream:
                raise RequestError("stream takes one conversation, got a list of them; call it for each.")
            return [self.chat(conversation, **sampling) for conversation in messages]
        chunks = self.stream(messages, **sampling)
        return chunks if stream else _last(chunks)

    def stream(self, prompt: str | Sequence[int] | Sequence[Message], **sampling) -> Iterator[Chunk]:
        """Yield the answer to a text (continued as it is) or a conversation as it is made.

        Closing the iterator stops the answer. A prompt that continues the one before (a chat's next turn) computes
        only what is new. Errors in the request are raised here, before the first chunk.
        """
        return self._stream_ids(self._prompt_ids(prompt), **sampling)

    def logprobs(self, text: str | Sequence[int] | Sequence[str], *, top: int = 0) -> Any:
        """Return the PromptLogprobs of a text (after BOS), with the `top` likeliest tokens at each place.

        A list of texts gives a list.
        """
        if _is_list_of_texts(text):
            return [self.logprobs(one, top=top) for one in text]
        ids = self._prompt_ids(text)
        return PromptLogprobs(ids, self._engine.score(ids, top=SamplingParams(top_logprobs=top).top_logprobs))

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

    def _stream_ids(self, ids: list[int], *, stop: str | Sequence[str] | None = None, **overrides) -> Iterator[Chunk]:
        params = self.sampling(**overrides)
        wanted: Any = self._defaults.get("stop", ()) if stop is None else stop
        stops = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if not all(isinstance(s, str) and s for s in stops):
            raise RequestError(f"stop must be texts of at least one character, got {wanted!r}.")
        return self._chunks(ids, params, stops, self._engine.generate(ids, params))

    def _chunks(self, ids: list[int], params: SamplingParams, stops: tuple[str, ...], events) -> Iterator[Chunk]:
        decoder, matcher = self.tokenizer.stream(), StopMatcher(stops)
        answer = Completion(text="", prompt_tokens=len(ids), logprobs=[] if params.logprobs else None)
        text, matched = "", False
        for event in events:
            told = (event.logprob,) if event.logprob else ()
            answer.token_ids.extend(() if event.token_id is None else (event.token_id,))
            if answer.logprobs is not None:
                answer.logprobs.extend(told)
            piece = "" if event.token_id is None else decoder.push(event.token_id)
            if event.finish_reason:
                piece += decoder.finish()
            piece, matched = matcher.push(piece)
            reason: FinishReason | None = "stop" if matched else event.finish_reason
            if reason and not matched:
                piece += matcher.flush()
            text += piece
            completion = None
            if reason:
                completion = dataclasses.replace(
                    answer,
                    text=text,
                    completion_tokens=len(answer.token_ids),
                    finish_reason=reason,
                    stop_string=matcher.matched if matched else None,
                    timings=dataclasses.replace(self._engine.timings, load_s=self.load_s),
                )
            ids_now = () if event.token_id is None else (event.token_id,)
            yield Chunk(text=piece, token_ids=ids_now, logprobs=told, finish_reason=reason, completion=completion)
            if reason:
                events.close()
                return


def _is_list_of_texts(prompt: str | Sequence) -> TypeGuard[Sequence[str]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], str)


def _last(chunks: Iterator[Chunk]) -> Completion:
    """Run an answer to its end."""
    completion = None
    for chunk in chunks:
        completion = chunk.completion
    assert completion is not None
    return completion


def _refuse_what_comes_later(adapter: object) -> None:
    if adapter is not None:
        raise ConfigError("adapter: this release loads no adapters. Merge the adapter into its base model first.")


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


def _check_tokenizer(tokenizer: Tokenizer, checkpoint) -> None:
    """Refuse the tokenizer of another model: every id it gives must mean what the model learned."""
    tokenizer.require_rows(checkpoint.config.vocab_size, str(checkpoint.path))
    bos, expected = tokenizer.bos_id, checkpoint.generation.bos_id
    if bos != expected:
        raise CheckpointError(
            f"{checkpoint.path}: <bos> is {bos} in the tokenizer and {expected} in the model's config.\n"
            "They are of different models; put the tokenizer.json of this model beside its weights."
        )


def _sampled_vocab(tokenizer: Tokenizer, config) -> int:
    """Ids that may be sampled: no row without a piece, and not the image placeholder where it is the last piece."""
    size = min(tokenizer.size, config.vocab_size)
    return size - 1 if tokenizer.id_of("<image_soft_token>") == size - 1 else size


def _opening(modelfile) -> list[Message]:
    """The messages every conversation with a created model begins with."""
    if modelfile is None:
        return []
    turns = [("system", modelfile.system)] if modelfile.system else []
    return [{"role": role, "content": text} for role, text in (*turns, *modelfile.messages)]
