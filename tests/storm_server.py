"""A server for tests that also answers a question on its stdin: `python tests/storm_server.py FOLDER QUEUE`.

It is what `gemworks serve tiny --port 0` is, with one thread more. A line on stdin makes it drop the prefix cache,
check every invariant of the engine, and print what the engine counts.
"""

import dataclasses
import json
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until SIGTERM."""
    from gemworks.cli.ray_app import load
    from gemworks.server.run import run
    from gemworks.server.settings import LimitSettings, LogSettings, ModelSettings, Settings

    folder = Path(sys.argv[1])
    settings = Settings(
        port=0,
        usage_file=folder / "usage.sqlite",
        # Exact beside others: with keys and values in bf16 a near tie may fall otherwise in a mix (docs/numerics.md).
        models=ModelSettings(names=("tiny",), any_local=False, kv="float32"),
        limits=LimitSettings(queue=int(sys.argv[2])),
        logs=LogSettings(level="error", file=folder / "server.log"),
    )
    loaded: list[Any] = []

    def keep(name: str) -> Any:
        loaded.append(load(settings)(name))
        return loaded[-1]

    def audit() -> None:
        for _ in sys.stdin:
            engine = loaded[0]._engine
            engine._worker.wait(engine._scheduler.audit)
            engine.forget()
            engine._worker.wait(engine._scheduler.audit)
            say(json.dumps(dataclasses.asdict(engine.stats())))

    threading.Thread(target=audit, daemon=True).start()
    run(settings, load=keep, announce=say)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
