"""Plain jax.numpy with fp32 accumulation: the specification of every kernel, and the path on any device without one."""
