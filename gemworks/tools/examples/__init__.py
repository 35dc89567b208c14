"""Tools to begin with. Each file stands alone, as one given to `gemworks run --tools` does: standard library only."""
