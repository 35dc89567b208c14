"""Which tensor takes which format: an ordered list of name patterns, of which the first that matches decides.

    layers.*.attn.v        every layer's value projection; `.weight` may be left out
    layers.[0-2].*         the first three layers
    embed                  the table, which is also the head where the model ties them

Patterns are those of a shell: * is any text, dots included. Norm gains are never quantized.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

from gemworks.errors import ConfigError
from gemworks.ops.weight import FORMATS, Format, quant_bytes
from gemworks.quant.rtn import check

_SUFFIX = ".weight"
_KEPT = "as stored"
_NORMS = ("*.scale", "norm gains")


class Rule(NamedTuple):
    """Tensors whose name matches `pattern` are stored as `format`."""

    pattern: str
    format: Format

    def matches(self, name: str) -> bool:
        """True if the pattern is the whole name, with or without its `.weight`."""
        return fnmatchcase(name, self.pattern) or fnmatchcase(name.removesuffix(_SUFFIX), self.pattern)


class PlanRow(NamedTuple):
    """A line of the printed plan. num_bytes is None for tensors that stay as they are stored (see kept_bytes)."""

    pattern: str
    format: str
    tensors: int
    weights: int
    num_bytes: int | None


def kept_bytes(row: PlanRow) -> int:
    """Bytes of a line's tensors; of those that stay, as in bf16, which is what released checkpoints have."""
    return 2 * row.weights if row.num_bytes is None else row.num_bytes


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """What a model's matrices become. `asked` is how many rules, from the first, a person wrote by hand."""

    rules: tuple[Rule, ...]
    asked: int = 0

    @classmethod
    def parse(cls, format: str = "int4-b32", embed: str = "int8", overrides: Sequence[str] = ()) -> "QuantPlan":
        """Return the plan: `format` for every layer's matrices, `embed` for embedding and head, exceptions first.

        An exception reads `pattern=format`. Raises ConfigError for what is not a format or not such a pair.
        """
        main, table = _format(format, "--format"), _format(embed, "--embed")
        asked = [_rule(text) for text in overrides]
        rules = (Rule("embed.weight", table), Rule("head.weight", table), Rule("layers.*", main))
        return cls((*asked, *rules), len(asked))

    def format_of(self, name: str, shape: Sequence[int]) -> Format | None:
        """Return the format of a tensor, by our name; None for norm gains and what no pattern names.

        Raises ConfigError if the format cannot hold a matrix of this shape.
        """
        if len(shape) != 2:
            return None
        rule = next((rule for rule in self.rules if rule.matches(name)), None)
        return None if rule is None else check(rule.format, tuple(shape), name)

    def describe(self, shapes: Mapping[str, Sequence[int]]) -> list[PlanRow]:
        """Return the plan's lines for tensors of our names and their shapes, in the order of the rules.

        Raises ConfigError if a hand-written pattern matches no matrix, or a format cannot hold a tensor.
        """
        rows = []
        left = {name: tuple(shape) for name, shape in shapes.items()}
        matrices = [name for name, shape in left.items() if len(shape) == 2]
        for number, rule in enumerate(self.rules):
            if number < self.asked and not any(rule.matches(name) for name in matrices):
                examples = ", ".join(name.removesuffix(_SUFFIX) for name in matrices[:4])
                raise ConfigError(
                    f'"{rule.pattern}" must match the name of a matrix, and it matches none.\n'
                    f"Matrices of this model: {examples} ..."
                )
            names = [name for name in left if len(left[name]) == 2 and rule.matches(name)]
            taken = {name: left.pop(name) for name in names}
            if taken:
                sizes = [quant_bytes(check(rule.format, s, n), *s) for n, s in taken.items()]  # type: ignore[misc]
                weights = sum(s[0] * s[1] for s in taken.values())
                rows.append(PlanRow(rule.pattern, rule.format, len(taken), weights, sum(sizes)))
        return rows + _kept_rows(left)

    @property
    def key(self) -> str:
        """The plan as one line of text, equal for plans that do the same; for the names of caches."""
        return ",".join(f"{rule.pattern}={rule.format}" for rule in self.rules)


def _kept_rows(left: Mapping[str, tuple[int, ...]]) -> list[PlanRow]:
    """The lines of what no rule takes: norm gains in one, matrices one by one (a plan made by hand)."""
    rows = [PlanRow(name, _KEPT, 1, shape[0] * shape[1], None) for name, shape in left.items() if len(shape) == 2]
    norms = [shape for shape in left.values() if len(shape) == 1]
    return [*rows, PlanRow(_NORMS[0], _KEPT, len(norms), sum(s[0] for s in norms), None)] if norms else rows


def _rule(text: str) -> Rule:
    pattern, equals, format = text.partition("=")
    if not (pattern and equals and format):
        raise ConfigError(f'--set must be PATTERN=FORMAT, as in layers.*.attn.v=int8-b32, got "{text}".')
    return Rule(pattern, _format(format, f"--set {pattern}"))


def _format(text: str, where: str) -> Format:
    if text not in FORMATS:
        raise ConfigError(f'{where} must be one of {", ".join(FORMATS)}, got "{text}".')
    return cast(Format, text)
