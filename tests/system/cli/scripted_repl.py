"""The REPL with a model that answers with what it was asked: "<number of messages>|<system>|<text>", letter by letter.

A text that begins with "slow" is answered without end; "think" waits before the first letter.
"""

import sys
import time
from types import SimpleNamespace

from gemworks import Completion
from gemworks.cli import main, run
from gemworks.engine.types import Timings


class Echo:
    is_chat, context = True, 4096

    def stream(self, prompt, **sampling):
        return self._answer(prompt, sampling)

    def _answer(self, messages, sampling):
        asked = messages[-1]["content"]
        system = next((message["content"] for message in messages if message["role"] == "system"), "-")
        if asked.startswith("think"):
            time.sleep(60)
        words = f"{len(messages)}|{system}|{asked}|{sampling.get('temperature', '-')}"
        said = ""
        for letter in words if not asked.startswith("slow") else iter(lambda: "x", ""):
            time.sleep(0.005)
            said += letter
            yield SimpleNamespace(text=letter, token_ids=(1,), finish_reason=None, completion=None)
        timings = Timings(load_s=0.5, prefill_s=0.1, decode_s=0.2, prefill_tokens=10, decode_tokens=20, cached_tokens=3)
        done = Completion(text=said, token_ids=[1], prompt_tokens=13, completion_tokens=21, timings=timings)
        yield SimpleNamespace(text="", token_ids=(), finish_reason="stop", completion=done)


if __name__ == "__main__":
    run._load = lambda *_arguments, **_options: Echo()
    sys.exit(main.run_command(sys.argv[1:]))
