"""The mesh: how many devices along each of four axes.

    replica   whole copies of the run, each with rows of its own; gradients are summed over the slow network
    fsdp      rows are divided, and so are parameters and optimizer state (ZeRO-3: gathered layer by layer)
    seq       the tokens of a row are divided; parameters and optimizer state too
    tensor    heads, feed-forward columns and words of the head are divided

The report's table 2 has data x seq x replica: its data is fsdp here.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gemworks.errors import ConfigError

AXES = ("replica", "fsdp", "seq", "tensor")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshShape:
    """Devices along each axis."""

    replica: int = 1
    fsdp: int = 1
    seq: int = 1
    tensor: int = 1

    def __post_init__(self):
        if wrong := [name for name in AXES if getattr(self, name) < 1]:
            raise ConfigError(
                f"every axis of a mesh needs at least 1 device, got {getattr(self, wrong[0])} on {wrong[0]}."
            )

    @property
    def size(self) -> int:
        """Devices in all."""
        return prod(astuple(self))

    @property
    def rows(self) -> int:
        """Into how many parts the rows of a batch are divided."""
        return self.replica * self.fsdp

    def __str__(self) -> str:
        return " x ".join(f"{name} {getattr(self, name)}" for name in AXES if getattr(self, name) > 1) or "one device"


def parse_mesh(text: str) -> MeshShape:
    """Return the mesh of "fsdp=4,tensor=2"; "" is one device."""
    sizes = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, number = part.partition("=")
        if name not in AXES or not number.isdecimal():
            raise ConfigError(
                f'a mesh is written as fsdp=4,tensor=2 with the axes {", ".join(AXES)}; got "{part}" in "{text}".'
            )
        sizes[name] = int(number)
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over `devices` (all of this run's by default), neighbours on the innermost axes."""
    devices = jax.devices() if devices is None else devices
    if shape.size > len(devices):
        raise ConfigError(
            f"the mesh {shape} needs {shape.size} devices, and there are {len(devices)} "
            f"({devices[0].platform}).\nMake an axis smaller; on a CPU devices can be simulated (docs/train.md)."
        )
    return Mesh(np.asarray(devices[: shape.size]).reshape(astuple(shape)), AXES)
