"""How fast are we on this CPU, next to llama.cpp, OpenVINO GenAI, our own xla twin and what the machine allows?

    python bench/cpu/run.py [options of `gemworks bench cpu`]

Without options: 270M and 1B, the rivals that are installed, every row (docs/cpu.md). Random weights are made once, in
the cache.
"""

import sys

from gemworks.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command(["bench", "cpu", *sys.argv[1:]]))
