"""What a run shows: the curve falls where the loss does, the time left is that of usual steps."""

from pathlib import Path

import pytest
from nano_runs import nano_recipe

from gemworks.cli.train_view import Pace, Screen, curve, figures, view

RECORD = {"step": 5, "loss": 2.5, "grad_norm": 0.25, "rate": 1e-3, "seconds": 2.0, "tokens_per_second": 128.0}
CELLS = ".12345678"


def test_curve_falls_with_the_loss_and_is_labelled():
    lines = curve([(step, 9.0 - step) for step in range(1, 9)], width=8, height=2, cells=CELLS)
    assert lines == ["   8.000  8642....", "   1.000  88887531"]


def test_columns_of_a_long_run_are_means():
    points = [(step, float(step % 2) + (10 if step > 50 else 0)) for step in range(1, 101)]
    assert curve(points, width=2, height=1, cells=CELLS) == ["  10.500  18"]


def test_constant_loss_and_no_loss_can_be_drawn():
    assert curve([(1, 2.0), (2, 2.0)], 10, 1, CELLS) == ["   2.000  11"]
    assert curve([], 10, 1) == []


def test_time_left_is_that_of_usual_steps():
    pace = Pace(105)
    for step, seconds in enumerate([60.0, 2.0, 2.0, 2.0, 2.0], 1):
        pace.add(RECORD | {"step": step, "seconds": seconds})
    assert pace.left() == 200.0


def test_figures_of_a_step():
    text = "   ".join(figures(RECORD | {"mfu": 0.456}, 3723.0))
    assert text.startswith("loss 2.5000   gradient 0.250   rate 1.00e-03   128 tokens/s   45.6% of peak   memory ")
    assert text.endswith("1 h 02 min left")


def test_screen_shows_the_curve_from_the_start_of_a_continued_run():
    from rich.console import Console

    terminal = Console(width=80, force_terminal=True, color_system=None)
    screen = Screen(10, [{"step": 1, "loss": 4.0}, {"step": 2, "loss": None}])
    with terminal.capture() as before:
        terminal.print(screen)
    assert "compiling the step" in before.get()
    screen.add(RECORD)
    screen.add(RECORD | {"step": 6, "loss": float("nan")})
    with terminal.capture() as after:
        terminal.print(screen)
    assert "   4.000  " in after.get() and "   2.500  " in after.get()
    assert "step 6 of 10" in after.get() and "nan" in after.get()


@pytest.mark.parametrize(("steps", "lines"), [(10, 10), (1000, 100)])
def test_lines_where_nobody_watches(steps, lines, capsys):
    with view(nano_recipe(steps=steps), Path("nowhere")) as look:
        for step in range(1, steps + 1):
            look(RECORD | {"step": step})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert said[-1].startswith(f"step {steps:,} of {steps:,}   loss 2.5000")
