"""Named runs: each is a module that is started with python -m recipes.NAME and writes one directory."""
