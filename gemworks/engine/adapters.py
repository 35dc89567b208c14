"""The LoRA adapters an engine holds: which is in which slot, who uses it, and their matrices for the step.

A fixed number of slots of one rank, so that one program serves every mix: adapters of a smaller rank are padded with
zeros, and a load changes data and never a shape. Memory, per slot, is rank * sum(in + out) of the adapted matrices
a layer: 3.3 MB a rank for 1B in fp32 with all seven.

    slot 0     no adapter
    slot 1..   name -> slot; where none is free, a load takes that of the adapter that is unused the longest

The first DoRA adapter adds a factor for every row of every adapted matrix, and so changes the program once.

Keys and values of a prompt depend on its adapter: the prefix cache must tell loads apart (`key`), not slots and
not names, both of which may come to mean other weights.

One thread: the engine's. Arrays that were handed out are never changed, so a step in flight keeps what it began with.
"""

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from gemworks.errors import CapacityError, ConfigError, RequestError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS, Adapters, Delta, Target, target_shape
from gemworks.weights.adapter import LoraAdapter

# r rank of an adapter, D input width, F output width, P = slots * rank


@dataclass(slots=True)
class _Loaded:
    adapter: LoraAdapter
    slot: int
    version: int
    gains: Mapping[tuple[int, Target], np.ndarray] = field(default_factory=dict)
    running: int = 0


class AdapterPool:
    """Adapters by name. `slots` of them at most, of rank `max_rank` at most, on the matrices of `targets` only."""

    def __init__(
        self,
        config: TextConfig,
        *,
        slots: int,
        max_rank: int,
        targets: Sequence[Target] = TARGETS,
        dtype=np.float32,
    ):
        """`dtype` is that of the matrices on the device; a product rounds its activations to it."""
        if slots < 1 or max_rank < 1:
            raise ConfigError(f"adapters need at least 1 slot and rank 1, got {slots} and {max_rank}.")
        self._config = config
        self.slots, self.max_rank, self.targets = slots, max_rank, tuple(targets)
        self._dtype = dtype
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the one used last is last
        self._versions = 0
        self._has_gains = False
        self._adapters: Adapters | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What is loaded, in alphabetical order."""
        return tuple(sorted(self._loaded))

    @property
    def keys(self) -> frozenset[str]:
        """What keys and values computed with each loaded adapter are kept under."""
        return frozenset(map(self.key, self._loaded))

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices on the device, whatever is loaded."""
        shapes = [target_shape(self._config, target) for target in self.targets]
        columns, width = self.slots * self.max_rank, np.dtype(self._dtype).itemsize
        gains = 4 * (self.slots + 1) * sum(F for F, _ in shapes) if self._has_gains else 0
        return len(self._config.layers) * (columns * sum(F + D for F, D in shapes) * width + gains)

    @property
    def adapters(self) -> Adapters:
        """The matrices of every slot, for the model's call; the same object until a load changes them."""
        if self._adapters is None:
            self._adapters = self._stack()
        return self._adapters

    def load(
        self, name: str, adapter: LoraAdapter, gains: Mapping[tuple[int, Target], np.ndarray] | None = None
    ) -> int:
        """Put an adapter in a slot and return it. One of the same name is replaced.

        gains: of a DoRA adapter, the factor of every row of each matrix (gains.row_gains).

        Raises CapacityError where it does not fit: its rank, its targets, or every slot is in use by running requests.
        """
        self._check(name, adapter)
        if (old := self._loaded.get(name)) and old.running:
            raise CapacityError(
                f'adapter "{name}" must be idle to be replaced, and {old.running} running '
                f"{_requests(old.running)} it.\nLoad it under another name, or wait for them."
            )
        slot = old.slot if old else self._free_slot(name)
        self._versions += 1
        assert adapter.is_dora == bool(gains), "the rows of a DoRA adapter have factors, and no others"
        self._loaded[name] = _Loaded(adapter, slot, self._versions, gains or {})
        self._has_gains |= bool(gains)
        self._loaded.move_to_end(name)
        self._adapters = None
        return slot

    def unload(self, name: str) -> None:
        """Give an adapter's slot back. Raises RequestError if it is unknown, CapacityError while requests use it."""
        loaded = self._find(name)
        if loaded.running:
            raise CapacityError(
                f'adapter "{name}" must be idle to be unloaded, and {loaded.running} running '
                f"{_requests(loaded.running)} it.\nCancel or await them."
            )
        del self._loaded[name]  # its matrices stay where they are: no token has its slot

    def acquire(self, name: str) -> int:
        """Return the slot of an adapter for one running request, which keeps it there until `release`."""
        loaded = self._find(name)
        loaded.running += 1
        self._loaded.move_to_end(name)
        return loaded.slot

    def release(self, name: str) -> None:
        """One request of an adapter is done."""
        loaded = self._loaded[name]
        assert loaded.running > 0, f"adapter {name} is released more often than acquired"
        loaded.running -= 1

    def key(self, name: str) -> str:
        """Return what no other load has had, of this name or another. Raises RequestError if it is unknown."""
        return f"{name}#{self._find(name).version}"

    def _find(self, name: str) -> _Loaded:
        if (loaded := self._loaded.get(name)) is not None:
            return loaded
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise RequestError(
            f'no adapter named "{name}" is loaded.{hint}\nLoaded: {", ".join(self.names) if self.names else "none"}.'
        )

    def _check(self, name: str, adapter: LoraAdapter) -> None:
        if adapter.rank > self.max_rank:
            raise CapacityError(
                f'adapter "{name}" has rank {adapter.rank}, and this engine holds rank {self.max_rank} at most.\n'
                f"Start the engine with max_rank={adapter.rank} or more."
            )
        if outside := [target for target in adapter.targets if target not in self.targets]:
            raise CapacityError(
                f'adapter "{name}" changes {", ".join(outside)}, and this engine adapts {", ".join(self.targets)} '
                "only.\nStart the engine with those targets too."
            )
        for (layer, target), delta in adapter.deltas.items():
            F, D = target_shape(self._config, target)
            assert layer < len(self._config.layers), f"{name} was read for another model"
            assert (delta.b_Fr.shape[0], delta.a_rD.shape[1]) == (F, D), f"{name} was read for another model"

    def _free_slot(self, name: str) -> int:
        used = {loaded.slot for loaded in self._loaded.values()}
        if free := [slot for slot in range(1, self.slots + 1) if slot not in used]:
            return free[0]
        idle = next((one for one, loaded in self._loaded.items() if not loaded.running), None)
        if idle is None:
            raise CapacityError(
                f'adapter "{name}" needs a slot, and running requests use all {self.slots}: {", ".join(self.names)}.\n'
                "Wait for some of them, or start the engine with more slots."
            )
        return self._loaded.pop(idle).slot

    def _stack(self) -> Adapters:
        """Lay the adapters side by side, layer by layer; what a slot has not stays 0."""
        return Adapters(
            tuple({target: self._delta(i, target) for target in self.targets} for i in range(len(self._config.layers))),
            self.max_rank,
        )

    def _delta(self, layer: int, target: Target) -> Delta:
        F, D = target_shape(self._config, target)
        columns = self.slots * self.max_rank
        a_PD, b_FP = np.zeros((columns, D), self._dtype), np.zeros((F, columns), self._dtype)
        for loaded in self._loaded.values():
            if (delta := loaded.adapter.deltas.get((layer, target))) is not None:
                first = (loaded.slot - 1) * self.max_rank
                own = slice(first, first + delta.a_rD.shape[0])
                a_PD[own], b_FP[:, own] = delta.a_rD, delta.b_Fr
        gain_SF = np.ones((self.slots + 1, F), np.float32)
        for loaded in self._loaded.values():
            if (gain_F := loaded.gains.get((layer, target))) is not None:
                gain_SF[loaded.slot] = gain_F
        return Delta(jax.device_put(a_PD), jax.device_put(b_FP), jax.device_put(gain_SF) if self._has_gains else None)


def _requests(count: int) -> str:
    return "request uses" if count == 1 else "requests use"
