"""One system in a process of its own: `python -m gemworks.bench.worker`, calls in and results out as JSON lines.

A process a system, because thread pools that share a process fight; a worker that is not asked sleeps on its stdin.
Whatever the library prints goes to stderr. Standard library only at the top: rivals may live in another Python.
"""

import json
import os
import sys
import traceback
from typing import Any

from gemworks.bench.system import System, SystemSpec


def load(spec: SystemSpec) -> System:
    """Return the loaded system. Raises ImportError where the rival is not installed."""
    if spec.engine == "llama.cpp":
        from gemworks.bench.rivals_llama import LlamaCpp

        return LlamaCpp(spec)
    if spec.engine == "openvino":
        from gemworks.bench.rivals_openvino import OpenVino

        return OpenVino(spec)
    if spec.engine == "engine":
        from gemworks.bench.engine_ours import OursEngine

        return OursEngine(spec)  # type: ignore[return-value]  # it has what engine.py asks for
    from gemworks.bench.ours import Ours

    return Ours(spec)


def answer(system: System, call: dict[str, Any]) -> Any:
    """Do one call: {"do": a method of System or of the system itself, "with": its arguments}."""
    return getattr(system, call["do"])(**call["with"])


def main() -> None:
    """Load the system of the first line, then answer a line with a line until stdin ends."""
    # The protocol keeps the real stdout; what C++ code prints must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    system: System | None = None
    for line in sys.stdin:
        call = json.loads(line)
        try:
            if system is None:
                system = load(SystemSpec(**call))
                reply(result=None)
            else:
                reply(result=answer(system, call))
        except BaseException as error:
            traceback.print_exc()
            reply(error=f"{type(error).__name__}: {error}")
            if not isinstance(error, Exception):
                raise


if __name__ == "__main__":
    main()
