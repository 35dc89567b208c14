"""A real server process over an LLM that is none: fake_server.py SETTINGS.toml SECONDS_BETWEEN_TOKENS ANSWER."""

import sys
from pathlib import Path

from fake_llm import FakeLLM  # beside this file, whose folder a script finds first

from gemworks.server.run import run
from gemworks.server.settings_file import read_settings


def main() -> None:
    llm = FakeLLM(sys.argv[3], context=100_000)
    llm.delay_s = float(sys.argv[2])
    settings = read_settings(Path(sys.argv[1]), {"port": ("--port", 0), "models.names": ("MODEL", ["tiny"])})
    run(settings, load=lambda name: llm, announce=lambda line: print(line, flush=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
