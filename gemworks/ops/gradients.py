"""Functions with a gradient of their own: a kernel's, or one that adds in a wider type."""

from collections.abc import Callable
from typing import Any

import jax


def with_gradient(
    function: Callable, forward: Callable, backward: Callable, *, constants: tuple[int, ...] = (0,)
) -> Callable[..., Any]:
    """Return jax.custom_vjp of a function whose arguments at the places `constants` are no arrays."""
    made = jax.custom_vjp(function, nondiff_argnums=constants)
    made.defvjp(forward, backward)
    return made
