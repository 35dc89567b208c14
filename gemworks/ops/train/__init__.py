"""The ops as training computes them: rows [B, T, ...] at once, and backward passes in the dtype of the weights."""
