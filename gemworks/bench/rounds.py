"""Measuring several systems in turns, so that a noisy minute is noisy for all of them."""

from collections.abc import Callable, Mapping

from gemworks.errors import BackendError

# name -> figure -> its values, one a round
Samples = dict[str, dict[str, list[float]]]


def interleaved(
    calls: Mapping[str, Callable[[int], dict[str, float]]],
    repeats: int,
    *,
    between: Callable[[], None],
    say: Callable[[str], None],
    may_stop: bool = False,
) -> Samples:
    """Call each once unmeasured (round 0), then each in turn in rounds 1 to `repeats`; return what they measured.

    Every second round goes in the other order. `between` runs before every measured round. A call that raises
    BackendError is told and takes no further part: it has no figures then. may_stop: Ctrl-C ends the measuring once
    each has figures, and what was measured until then is returned.
    """
    left = dict(calls)
    values: Samples = {name: {} for name in calls}
    for round in range(repeats + 1):
        if round > 0:
            between()
        for name in list(left) if round % 2 else reversed(list(left)):
            try:
                figures = left[name](round)
            except KeyboardInterrupt:
                if not may_stop or not all(values.values()):
                    raise
                say(f"stopped in round {round}")
                return values
            except BackendError as error:
                say(str(error))
                del left[name], values[name]
                continue
            for figure, value in figures.items() if round > 0 else ():
                values[name].setdefault(figure, []).append(value)
    return values
