"""A system of bench/train: lines of JSON in, lines of JSON out; what libraries print goes to stderr."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def answer_calls(calls: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer {"do": name, ...} with calls[name](...) until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            reply = calls[arguments.pop("do")](**arguments)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()
