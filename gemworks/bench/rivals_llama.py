"""llama.cpp through the C API of llama-cpp-python: what llama-bench and llama-batched-bench time, with their settings.

llama-bench: batches of 2048 in steps of 512, flash attention left to llama.cpp, the window kept for local layers only
(swa_full off), memory cleared before every run, given tokens decoded with no sampling, one untimed run before.
"""

import ctypes
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.bench.system import SystemSpec
from gemworks.errors import BackendError

_BATCH = 2048  # llama-bench's --batch-size; its --ubatch-size is 512
_STEP = 512
_WARNING = 3  # log level: lower ones tell how a file is loaded


def _print_warnings(level: int, text: bytes, _data: object) -> None:
    if level >= _WARNING:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaCpp:
    """A GGUF file in llama.cpp on the CPU."""

    def __init__(self, spec: SystemSpec):
        api = _import()
        self._api, self._version = api, f"llama-cpp-python {version('llama-cpp-python')}"
        self._log = api.llama_log_callback(_print_warnings)
        api.llama_log_set(self._log, None)
        api.llama_backend_init()
        self._threads = spec.threads
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(spec.path.encode(), parameters)
        if not self._model:
            raise BackendError(f"{self._version} cannot load {spec.path}.")
        self._words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}
        self._context: Any = None
        self._next = np.random.default_rng(7).integers(300, min(200_000, self._words), 4096).astype(np.int32)

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Make a context of `sequences` texts of `context` tokens."""
        key = (context, sequences)
        if key not in self._contexts:
            self._contexts[key] = self._new_context(*key)
        self._context = self._contexts[key]
        system = self._api.llama_print_system_info()
        return {
            "version": self._version,
            "weight_bytes": self._api.llama_model_size(self._model),
            "system": (system or b"").decode(),
        }

    def prefill(self, ids: list[int]) -> float:
        """Compute a prompt in batches of 2048."""
        self._clear()
        tokens = np.asarray(ids, np.int32)
        started = time.perf_counter()
        for first in range(0, len(tokens), _BATCH):
            self._decode(tokens[first : first + _BATCH])
        return time.perf_counter() - started

    def decode(self, count: int) -> float:
        """Compute `count` given tokens one by one."""
        started = time.perf_counter()
        for i in range(count):
            self._decode(self._next[i : i + 1])
        return time.perf_counter() - started

    def batch(self, prompts: list[list[int]], count: int) -> float:
        """As llama-batched-bench: all prompts in common batches, then a token of every sequence a step."""
        self.prepare(max(map(len, prompts)) + count, len(prompts))
        return self.streams(prompts, count)["decode_seconds"]

    def streams(self, prompts: list[list[int]], count: int) -> dict[str, float]:
        """The same in a context that `prepare` made; seconds in all, of the prompts, of decoding, and its rate."""
        self._clear()
        entries = [(id, at, sequence) for sequence, ids in enumerate(prompts) for at, id in enumerate(ids)]
        batch = self._api.llama_batch_init(_BATCH, 0, 1)
        begun = time.perf_counter()
        try:
            for first in range(0, len(entries), _BATCH):
                self._decode_entries(batch, entries[first : first + _BATCH], scored=False)
            started = time.perf_counter()
            for i in range(count):
                step = [(int(self._next[i + 64 * s]), len(ids) + i, s) for s, ids in enumerate(prompts)]
                self._decode_entries(batch, step, scored=True)
            ended = time.perf_counter()
        finally:
            self._api.llama_batch_free(batch)
        return {
            "seconds": ended - begun,
            "prompt_seconds": started - begun,
            "decode_seconds": ended - started,
            "decode_per_second": len(prompts) * count / (ended - started),
        }

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Return the likeliest next token and the logits of the `wanted` ones."""
        self.prefill(ids)
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self._words,))
        return int(logits.argmax()), logits[wanted].astype(float).tolist()

    def _new_context(self, context: int, sequences: int) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = context * sequences
        parameters.n_seq_max = sequences
        parameters.n_batch, parameters.n_ubatch = _BATCH, _STEP
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.swa_full = False
        if sequences > 1:
            parameters.n_outputs_max = sequences
        made = self._api.llama_init_from_model(self._model, parameters)
        if not made:
            raise BackendError(f"llama.cpp cannot make a context of {sequences} x {context} tokens.")
        return made

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def _decode(self, tokens: np.ndarray) -> None:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._check(self._api.llama_decode(self._context, self._api.llama_batch_get_one(pointer, len(tokens))))
        self._api.llama_synchronize(self._context)

    def _decode_entries(self, batch: Any, entries: list[tuple[int, int, int]], *, scored: bool) -> None:
        """Compute (token, position, sequence) entries; logits of all of them if `scored`, else of the last."""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = scored or i == len(entries) - 1
        self._check(self._api.llama_decode(self._context, batch))
        self._api.llama_synchronize(self._context)

    def _check(self, code: int) -> None:
        if code != 0:
            raise BackendError(f"llama_decode gave {code} (1: no room in the context).")


def _import() -> Any:
    """Return the C API. It has no types that a checker could use."""
    from llama_cpp import llama_cpp  # pyright: ignore[reportMissingImports]

    return llama_cpp


def quantize(source: Path, out: Path, threads: int) -> None:
    """Write a float GGUF file as llama.cpp's own quantizer makes Q4_0: the table becomes Q6_K. Raises BackendError."""
    api = _import()
    log = api.llama_log_callback(_print_warnings)
    api.llama_log_set(log, None)
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = api.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.nthread = threads
    partial = out.with_name(f".{out.name}.partial")
    code = api.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters))
    # The callback dies with this function.
    api.llama_log_set(api.llama_log_callback(), None)
    if code != 0:
        partial.unlink(missing_ok=True)
        raise BackendError(f"llama.cpp's quantizer gave {code} for {source}.")
    partial.rename(out)
