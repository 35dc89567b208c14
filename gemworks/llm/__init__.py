"""Text in, text out, in one process: the offline Python API.

from gemworks import LLM
llm = LLM("gemma3:1b")
print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
for chunk in llm.stream("Once upon a time", max_tokens=50):
    print(chunk.text, end="")
texts = [answer.text for answer in llm.generate(["One", "Two", "Three"], max_tokens=20)]
"""

from gemworks.llm.answers import Chunk, Completion, PromptLogprobs
from gemworks.llm.model import LLM
from gemworks.llm.sizes import DEFAULT_CONTEXT

__all__ = ["DEFAULT_CONTEXT", "LLM", "Chunk", "Completion", "PromptLogprobs"]
