"""The one interface behind which ours, its twin on ops/xla and the rivals are measured, and how they are named.

    ours int4-b32+int8      this package, blocks in the first format, embedding and head in the second
    engine int4-b32+int8    the same with many sequences at once (engine_ours.py)
    xla bf16                this package on ops/xla alone (GEMWORKS_BACKEND=xla), as it runs without a C++ compiler
    llama.cpp q4_0          a GGUF file of the same weights, 8-bit embedding
    llama.cpp q4_0-pure     4 bits everywhere
    llama.cpp q4_0-q6_k     llama.cpp's own choice for Q4_0: embedding Q6_K
    openvino int4           OpenVINO GenAI, int4 in groups of 128, int8 embedding

Standard library only: OpenVINO's worker runs in another Python.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

Engine = Literal["ours", "engine", "xla", "llama.cpp", "openvino"]


# Each rival -> which of ours it is compared with: the one of the same formats, else the main one.
COMPARED = {
    "llama.cpp q4_0": "ours int4-b32+int8",
    "llama.cpp q4_0-pure": "ours int4-b32",
    "llama.cpp q4_0-q6_k": "ours int4-b32",
    "llama.cpp q8_0": "ours int8-b32",
    "openvino int4": "ours int4-b32+int8",
    "xla bf16": "ours int4-b32+int8",
}


class System(Protocol):
    """A model that is loaded. Every method but `prepare` returns seconds of wall time."""

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Get ready for `sequences` texts of up to `context` tokens each; returns what is worth reporting."""
        ...

    def prefill(self, ids: list[int]) -> float:
        """Compute a prompt from an empty context, up to the scores of the next token."""
        ...

    def decode(self, count: int) -> float:
        """Compute `count` more tokens after the prompt of the last `prefill`, one at a time."""
        ...

    def batch(self, prompts: list[list[int]], count: int) -> float:
        """Compute `count` tokens of every prompt together, one of each a step; the prompts' own time is not counted."""
        ...

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Return (the likeliest next token, the scores of the `wanted` tokens); NotImplementedError if not told."""
        ...


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What a worker needs to load a system. `python` runs it; None is this one."""

    engine: Engine
    kind: str  # a format, two joined by +, or the kind of a GGUF file
    path: str  # a directory, or a .gguf file
    threads: int
    python: str | None = None

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.engine} {self.kind}"

    @property
    def formats(self) -> tuple[str | None, str | None]:
        """(of the blocks' matrices, of embedding and head) of ours; None is bf16."""
        blocks, _, embed = self.kind.partition("+")
        return (None, None) if blocks == "bf16" else (blocks, embed or blocks)

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)
