"""What is compared, as data: an arm is one training run with its recipe; a study is a set of arms.

All arms of a study see the same tokens in the same order for the same seed, start from the same random weights where
their shapes agree, and have the same rates: what differs is what the name says. Rates, batch and sizes are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gemworks.model.config import LayerSpec, TextConfig
from gemworks.train.distill import Distill
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule

STUDIES = ("students", "attention")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes but for how its layers attend."""

    dim: int
    ffw: int
    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of all studies. The defaults take about 65 minutes of one core (docs/studies.md)."""

    seeds: tuple[int, ...] = (0, 1, 2)
    vocabulary: int = 1024
    tokens: int = 512  # of a row
    rows: int = 4
    peak: float = 4e-3  # of table and gains; muon_peak of the matrices
    muon_peak: float = 2e-2
    warm_up: float = 0.1  # part of the steps
    draws: int = 64  # of the teacher, a token: 256 of 262,144 words would be 1 of these 1,024
    student: Shape = field(default_factory=lambda: Shape(dim=32, ffw=96, layers=6, heads=1, head_dim=32))
    small: Shape = field(default_factory=lambda: Shape(dim=64, ffw=192, layers=6, heads=1, head_dim=32))
    large: Shape = field(default_factory=lambda: Shape(dim=128, ffw=384, layers=6, heads=2, head_dim=32))
    teacher_steps: int = 700
    budgets: tuple[tuple[str, int], ...] = (("short", 45), ("long", 360))  # steps of a student
    points: int = 6  # of a student's curve
    attention: Shape = field(default_factory=lambda: Shape(dim=48, ffw=144, layers=8, heads=1, head_dim=32))
    attention_steps: int = 240
    ratios: tuple[int, ...] = (1, 3, 5, 7)  # local layers to a global one
    windows: tuple[int, ...] = (32, 64, 128, 256)
    ratio: int = 5  # of the arms that differ in their window, and the window of those that differ in their ratio
    window: int = 64


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run. `teacher` names the arm it learns from; `points` are the checkpoints at which it is measured."""

    name: str
    study: str
    recipe: Recipe
    teacher: str = ""
    points: int = 1


def arms(plan: Plan) -> tuple[Arm, ...]:
    """Return every arm, teachers before their students; for each seed all arms, so that a stop leaves whole pairs."""
    return (*_teachers(plan), *_students(plan), *_attention(plan))


def student_name(lesson: str, budget: str, seed: int) -> str:
    """Return the name of a student's arm; lesson: scratch, small or large."""
    return f"student-{lesson}-{budget}-seed{seed}"


def attention_name(ratio: int, window: int, seed: int) -> str:
    """Return the name of an arm of the attention study."""
    return f"attention-{ratio}to1-w{window}-seed{seed}"


def attention_settings(plan: Plan) -> list[tuple[int, int]]:
    """Return (ratio, window) of all arms of the attention study, the common one once."""
    found = [(ratio, plan.window) for ratio in plan.ratios] + [(plan.ratio, window) for window in plan.windows]
    return list(dict.fromkeys(found))


def config(plan: Plan, shape: Shape, ratio: int, window: int) -> TextConfig:
    """Return a model's config: layer i is global where (i + 1) % (ratio + 1) == 0."""
    local, global_ = LayerSpec(window=window, rope_base=1e4), LayerSpec(window=None, rope_base=1e6)
    return TextConfig(
        vocab_size=plan.vocabulary,
        model_dim=shape.dim,
        ffw_dim=shape.ffw,
        num_heads=shape.heads,
        num_kv_heads=1,
        head_dim=shape.head_dim,
        query_scale=shape.head_dim**-0.5,
        layers=tuple(global_ if (i + 1) % (ratio + 1) == 0 else local for i in range(shape.layers)),
        max_positions=plan.tokens,
    )


def _recipe(plan: Plan, shape: Shape, steps: int, seed: int, points: int, ratio: int, window: int) -> Recipe:
    return Recipe(
        model=config(plan, shape, ratio, window),
        seed=seed,
        steps=steps,
        rows=plan.rows,
        tokens=plan.tokens,
        dtype="float32",
        optimizer=Optimizer(name="muon", peak=plan.peak, muon_peak=plan.muon_peak),
        schedule=Schedule(kind="cosine", warm_up=max(1, round(steps * plan.warm_up)), last=0.05),
        execution=Execution(remat=False, checkpoint_every=max(1, steps // max(points, 4)), keep=max(points, 4) + 1),
    )


def _teachers(plan: Plan) -> Iterator[Arm]:
    for name, shape in (("small", plan.small), ("large", plan.large)):
        recipe = _recipe(plan, shape, plan.teacher_steps, 1000, 1, plan.ratio, plan.window)
        yield Arm(name=f"teacher-{name}", study="students", recipe=recipe)


def _students(plan: Plan) -> Iterator[Arm]:
    for seed in plan.seeds:
        for budget, steps in plan.budgets:
            points = plan.points if steps == max(s for _, s in plan.budgets) else 1
            plain = _recipe(plan, plan.student, steps, seed, points, plan.ratio, plan.window)
            for lesson in ("scratch", "small", "large"):
                taught = replace(plain, method=Distill(draws=plan.draws))
                yield Arm(
                    name=student_name(lesson, budget, seed),
                    study="students",
                    recipe=plain if lesson == "scratch" else taught,
                    teacher="" if lesson == "scratch" else f"teacher-{lesson}",
                    points=points,
                )


def _attention(plan: Plan) -> Iterator[Arm]:
    for seed in plan.seeds:
        for ratio, window in attention_settings(plan):
            recipe = _recipe(plan, plan.attention, plan.attention_steps, seed, 1, ratio, window)
            yield Arm(name=attention_name(ratio, window, seed), study="attention", recipe=recipe)
