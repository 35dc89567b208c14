"""From an open checkpoint to a model on the device, tensor by tensor.

    float matrices       a tensor stored in the wanted dtype and 64-byte aligned is used where it lies in the file's
                         mapping; any other is converted into memory of its own and its file pages are let go
    quantized matrices   where the CPU kernels run: packed in their order, in a file that is built once and mapped from
                         then on (packed.py, packed_store.py); elsewhere, if a plan asks for them, row-major in memory

So the peak is the model plus one tensor. What becomes of which tensor is decided in prepare.py.
"""

import os
import warnings
from collections.abc import Callable
from threading import Thread

import jax
import numpy as np

from gemworks import env
from gemworks.errors import GemworksWarning, StorageError
from gemworks.model.gemma3 import Gemma3, build
from gemworks.ops import layout, select
from gemworks.ops.weight import PackedWeight, QuantWeight
from gemworks.quant.plan import QuantPlan
from gemworks.weights import packed_store
from gemworks.weights.checkpoint import Checkpoint
from gemworks.weights.packed import PLAIN, PackedFile, PackedSource, data_bytes, write_packed
from gemworks.weights.packed_header import NotUsable
from gemworks.weights.prepare import Dtype, is_finite, prepare, resolve_dtype

__all__ = ["Dtype", "Loader", "is_finite", "load_model", "resolve_dtype"]

Progress = Callable[[int, int], None]


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    quant: QuantPlan | None = None,
    progress: Progress | None = None,
    packing: Progress | None = None,
) -> Gemma3:
    """Return the model with every tensor on the default device; the checkpoint may be closed afterwards.

    dtype "auto" is float32 where every matrix is stored in F32, else bfloat16 (F16 too: the model never runs in fp16),
    and leaves matrices quantized that are stored so where kernels read them; norm gains are float32. `quant` says which
    matrices to quantize. `progress(bytes_done, bytes_total)` is called after every tensor, `packing` (default: the
    same) while a packed file is built. NaN or infinite weights are a GemworksWarning that names the tensors.
    """
    return Loader(checkpoint, dtype=dtype, quant=quant).load(progress=progress, packing=packing)


class Loader:
    """Loads one checkpoint. From construction on, a packed file is checked for damage in a thread of its own."""

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: str = "auto", quant: QuantPlan | None = None, pack: bool | None = None
    ):
        """`pack`: whether quantized matrices are packed; None: where the kernels that read them run."""
        self._checkpoint = checkpoint
        has_kernels = select.packs_weights() if pack is None else pack
        self._preparation = prepare(checkpoint, dtype, quant, has_kernels=has_kernels)
        self._packs = has_kernels and any(self._preparation.formats.values())
        self._opened: PackedFile | None = None
        self._checking: Thread | None = None
        if self._packs:
            # What is stored quantized is a plan too; with dtype, as that decides about the other matrices.
            self._plan = f"{quant.key if quant else 'as stored'} ({self._preparation.dtype.name})"
            files = [entry.file for entry in checkpoint.entries.values()]
            self._source = packed_store.identity(checkpoint.path, files)
            self._path = packed_store.packed_path(checkpoint.path, self._plan)
            self._wrong: str | None = None
            self._open()

    def load(self, *, progress: Progress | None = None, packing: Progress | None = None) -> Gemma3:
        """Return the model; see load_model."""
        if not self._packs:
            return self._from_checkpoint(progress)
        file = self._usable()
        if file is None:
            if self._wrong:
                warnings.warn(f"{self._path} {self._wrong}; it is built again.", GemworksWarning, stacklevel=3)
            file = self._build(packing or progress)
        return self._from_checkpoint(progress) if file is None else self._from_packed(file, progress)

    def _open(self) -> None:
        """Map the packed file, if there is one, and begin to compare it with its sums."""
        self._opened = self._checking = None
        if not self._path.exists():
            return
        try:
            self._opened = packed_store.open_current(
                self._path, self._source, self._plan, layout.LAYOUT_VERSION, self._expected()
            )
        except NotUsable as error:
            self._wrong = str(error)
            return

        # One product of numpy over the whole file, outside the interpreter's lock: it runs beside the imports, the
        # tokenizer and the programs, and brings the pages into memory that the first step reads.
        def check(file: PackedFile) -> None:
            self._wrong = file.damage(threads=min(2, os.cpu_count() or 1))

        self._wrong = "cannot be compared with its sums"  # until it was
        self._checking = Thread(target=check, args=(self._opened,), daemon=True)
        self._checking.start()

    def _usable(self) -> PackedFile | None:
        """The packed file once it is known to be whole, or None."""
        if self._opened is None or self._checking is None:
            return None
        self._checking.join()
        return None if self._wrong else self._opened

    def _build(self, progress: Progress | None) -> PackedFile | None:
        """Write the packed file and map it, or say why not and return None: the model then runs from memory."""
        sources = [self._source_of(name, size) for name, size in self._sizes().items()]
        needed = data_bytes(sources)
        try:
            with packed_store.building(self._path):
                self._wrong = None
                self._open()  # another process may have built it by now
                if (file := self._usable()) is not None:
                    return file
                if env.packed_limit() == 0:
                    return None  # as somebody wants it
                if not packed_store.make_room(needed, keep=self._path):
                    return self._give_up(f"{needed:,} bytes of packed weights exceed the limit of the packed cache")
                write_packed(
                    self._path,
                    sources,
                    layout=layout.LAYOUT_VERSION,
                    source=self._source,
                    plan=self._plan,
                    broken=lambda: self._preparation.broken,
                    progress=progress,
                )
                return PackedFile(self._path)
        except (StorageError, OSError, NotUsable) as error:
            return self._give_up(str(error).splitlines()[0].rstrip("."))

    def _give_up(self, why: str) -> None:
        warnings.warn(
            f"{why}; this start keeps the packed weights in memory, and the next one packs them again.",
            GemworksWarning,
            stacklevel=5,
        )
        self._preparation.broken.clear()

    def _from_packed(self, file: PackedFile, progress: Progress | None) -> Gemma3:
        def leaf(name: str, shape: tuple[int, ...]) -> jax.Array | PackedWeight:
            weight = file.weight(name)
            assert weight.shape == shape, (name, weight.shape, shape)
            return _on_device(weight)

        model = build(self._checkpoint.config, leaf)
        if progress:
            progress(file.num_bytes, file.num_bytes)
        self._warn_of_broken(file.header["broken"])
        return model

    def _from_checkpoint(self, progress: Progress | None) -> Gemma3:
        checkpoint, preparation = self._checkpoint, self._preparation
        done = 0

        def leaf(name: str, shape: tuple[int, ...]) -> jax.Array | QuantWeight | PackedWeight:
            nonlocal done
            array = preparation.read(name)
            assert tuple(array.shape) == shape, f"{name}: the strict check let {array.shape} pass for {shape}"
            if self._packs and isinstance(array, QuantWeight):
                array = PackedWeight(layout.pack(array), array.format, array.shape)
            on_device = _on_device(array)
            if not _is_mapped(array):
                jax.block_until_ready(on_device)
                del array
                checkpoint.release(name)
            done += checkpoint.entries[name].num_bytes
            if progress:
                progress(done, checkpoint.num_bytes)
            return on_device

        model = build(checkpoint.config, leaf)
        self._warn_of_broken(preparation.broken)
        return model

    def _sizes(self) -> dict[str, int]:
        """Bytes of every tensor in the packed file, by our name."""
        sizes = {}
        for name, entry in self._checkpoint.entries.items():
            format = self._preparation.formats[name]
            if format is None:
                sizes[name] = int(np.prod(entry.shape)) * self._preparation.plain_dtype(name).itemsize
            else:
                sizes[name] = layout.packed_bytes(format, *entry.shape)
        return sizes

    def _expected(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """(kind, shape, bytes) that every tensor of the packed file must have."""
        entries = self._checkpoint.entries
        return {name: (self._kind(name), tuple(entries[name].shape), size) for name, size in self._sizes().items()}

    def _kind(self, name: str) -> str:
        return self._preparation.formats[name] or self._preparation.plain_dtype(name).name

    def _source_of(self, name: str, size: int) -> PackedSource:
        def produce() -> np.ndarray:
            array = self._preparation.read(name)
            data = layout.pack(array) if isinstance(array, QuantWeight) else np.array(array)
            del array
            self._checkpoint.release(name)
            return data

        kind, shape = self._kind(name), tuple(self._checkpoint.entries[name].shape)
        assert self._preparation.formats[name] or kind in PLAIN, kind
        return PackedSource(name=name, kind=kind, shape=shape, size=size, produce=produce)

    def _warn_of_broken(self, broken: list[str]) -> None:
        if not broken:
            return
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        warnings.warn(
            f"{self._checkpoint.path}: {len(broken)} of {len(self._checkpoint.entries)} tensors hold NaN or infinite "
            f"values: {', '.join(broken[:10])}{more}.\nAnswers will be wrong; fetch or export the model again.",
            GemworksWarning,
            stacklevel=4,
        )


def _on_device(weight):
    """The same weight with its arrays on the default device, without a copy where they are aligned."""
    return jax.tree.map(lambda array: jax.device_put(array, may_alias=True), weight)


def _is_mapped(array: np.ndarray | QuantWeight | PackedWeight) -> bool:
    """True where `array` may point into the checkpoint's file, whose pages must then stay."""
    return isinstance(array, np.ndarray) and not array.flags.writeable
