"""Which device holds which part of every parameter: a table over names, checked and printable before anything runs.

    embed, head            words over tensor, width over fsdp and seq
    q k v, gate up         heads or columns (out) over tensor, in over fsdp and seq
    o, down                in over tensor, out over fsdp and seq
    gains                  over fsdp and seq

Stored so, a parameter is gathered over fsdp and seq just before its layer computes, and again for the gradient; what
is divided over tensor stays divided. Optimizer state and moving average lie as their parameter does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.parallel.mesh import MeshShape

_ZERO = ("fsdp", "seq")  # the axes over which parameters are divided and gathered

# The axis of each dimension, [out, in] for matrices. First match counts.
_RULES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (r"(embed|head)\.weight", ("tensor", _ZERO)),
    (r"layers\.\d+\.(attn\.[qkv]|ffw\.(gate|up))\.weight", ("tensor", _ZERO)),
    (r"layers\.\d+\.(attn\.o|ffw\.down)\.weight", (_ZERO, "tensor")),
    (r".*\.scale", (_ZERO,)),
)

ROWS = PartitionSpec(("replica", "fsdp"), "seq")  # of a batch, and of what the stack computes between layers


class Placement(NamedTuple):
    """How one parameter lies (stored) and how it is when its layer computes (used)."""

    stored: PartitionSpec
    used: PartitionSpec


@dataclass(frozen=True, eq=False)  # compared and hashed as the one object it is: programs are kept by it
class ShardPlan:
    """Every parameter's placement on a mesh of this shape."""

    shape: MeshShape
    shapes: Mapping[str, tuple[int, ...]]
    placements: Mapping[str, Placement]

    def bytes_per_device(self, bytes_per_parameter: int) -> int:
        """Bytes of all stored parameters on the fullest device."""
        return bytes_per_parameter * sum(
            prod(shape) // self.divided(self.placements[name].stored) for name, shape in self.shapes.items()
        )

    def divided(self, spec: PartitionSpec) -> int:
        """Into how many parts an array of this spec is cut."""
        axes = [axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
        return prod(getattr(self.shape, axis) for axis in axes)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of (parameters, shape, placement, parts) for printing; the layers' equal ones together."""
        seen: dict[tuple[str, str, str, str], list[str]] = {}
        for name, shape in self.shapes.items():
            stored = self.placements[name].stored
            general = re.sub(r"layers\.\d+\.", "layers.*.", name)
            row = general, " x ".join(map(str, shape)), _words(stored), str(self.divided(stored))
            seen.setdefault(row, []).append(name)
        return list(seen)


def make_plan(config: TextConfig, shapes: Mapping[str, tuple[int, ...]], shape: MeshShape) -> ShardPlan:
    """Return the plan. Raises ConfigError where the tensor axis does not divide heads, columns or words."""
    for what, count in (
        ("num_heads", config.num_heads),
        ("ffw_dim", config.ffw_dim),
        ("vocab_size", config.vocab_size),
    ):
        if count % shape.tensor:
            raise ConfigError(
                f"the tensor axis must divide {what}, got tensor={shape.tensor} and {what}={count}.\n"
                "Use a smaller tensor axis and a larger fsdp axis."
            )
    placements = {}
    for name, dims in shapes.items():
        entries = next(list(entries) for pattern, entries in _RULES if re.fullmatch(pattern, name))
        if re.search(r"attn\.[kv]\.", name) and config.num_kv_heads % shape.tensor:
            entries[0] = None  # every device of the axis computes all kv heads
        stored = [_fitting(entry, size, shape) for entry, size in zip(entries, dims, strict=True)]
        used = ["tensor" if entry == "tensor" else None for entry in stored]
        placements[name] = Placement(PartitionSpec(*stored), PartitionSpec(*used))
    return ShardPlan(shape, dict(shapes), placements)


def check_batch(shape: MeshShape, *, rows: int, tokens: int) -> None:
    """Raise ConfigError unless rows and tokens of a (micro) batch divide over the mesh."""
    if rows % shape.rows:
        raise ConfigError(
            f"rows of a batch must be a multiple of replica x fsdp, got {rows} rows and "
            f"{shape.replica} x {shape.fsdp} devices.\nChange the batch, or move devices to seq or tensor."
        )
    if tokens % shape.seq:
        raise ConfigError(f"tokens of a row must be a multiple of the seq axis, got {tokens} and seq={shape.seq}.")


def state_shardings(plan: ShardPlan, mesh: Mesh, state: Any) -> Any:
    """Return the sharding of every leaf of a training state: what is under a parameter's name lies as it does."""

    def one(path, leaf) -> NamedSharding:
        names = [str(getattr(key, "key", "")) for key in path]
        name = next((name for name in reversed(names) if name in plan.shapes), None)
        fits = name is not None and tuple(leaf.shape) == tuple(plan.shapes[name])
        return NamedSharding(mesh, plan.placements[name].stored if name is not None and fits else PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, state)


def _fitting(entry: Any, size: int, shape: MeshShape) -> Any:
    """The entry without the axes that do not divide the dimension or have one device."""
    if entry == "tensor":
        return entry if shape.tensor > 1 else None
    axes = [axis for axis in entry or () if getattr(shape, axis) > 1]
    while axes and size % prod(getattr(shape, axis) for axis in axes):
        axes.pop()
    return tuple(axes) or None


def _words(spec: PartitionSpec) -> str:
    parts = [" and ".join(entry) if isinstance(entry, tuple) else entry or "whole" for entry in spec]
    return ", ".join(parts)
