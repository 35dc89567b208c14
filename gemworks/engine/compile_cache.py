"""Keeps compiled programs on disk, so that only the first start on a machine compiles."""

import jax

from gemworks import env


def use_compile_cache() -> None:
    """Point jax at <cache>/xla, unless the user has. Programs that compile in 0.2 s are not kept."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(env.cache() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
