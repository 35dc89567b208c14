"""How does the engine do with many requests at once, next to llama.cpp and to what it is to reach?

    python bench/engine/run.py [--model DIR|1b] [--scenario load,streams,prefix,chat,fairness,speculation,host]
        [--rate R] [--prompt 128] [--answer 64] [--shared-prefix N] [--mix long,short] [--sequences 16] [--seconds S]

The options of `gemworks bench engine` (docs/engine.md): a load by default. Random weights are made once, in the cache.
The last line is one JSON object.
"""

import sys

from gemworks.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command(["bench", "engine", *sys.argv[1:]]))
