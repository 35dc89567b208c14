"""OpenVINO GenAI: its LLM pipeline on an exported directory. It may live in a Python of its own (--openvino-python).

The pipeline counts from the call to the first token and between tokens itself; those figures are used, so that neither
tokenizer nor Python is charged to it. It has no call for several texts a step that compares with ours, and tells no
scores.
"""

from typing import Any

import numpy as np

from gemworks.bench.system import SystemSpec


class OpenVino:
    """An exported model in OpenVINO GenAI on the CPU."""

    def __init__(self, spec: SystemSpec):
        import openvino  # pyright: ignore[reportMissingImports]
        import openvino_genai as genai  # pyright: ignore[reportMissingImports]

        self._tensor, self._genai = openvino.Tensor, genai
        self._pipe = genai.LLMPipeline(spec.path, "CPU", INFERENCE_NUM_THREADS=spec.threads)
        self._ids: list[int] = []

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Nothing to do: the pipeline grows its cache."""
        return {"version": f"openvino-genai {self._genai.__version__}"}

    def prefill(self, ids: list[int]) -> float:
        """Time to the first token."""
        self._ids = ids
        return self._run(ids, 1).get_ttft().mean / 1000

    def decode(self, count: int) -> float:
        """Time of `count` tokens after the first."""
        return self._run(self._ids, count + 1).get_tpot().mean / 1000 * count

    def batch(self, prompts: list[list[int]], count: int) -> float:
        """Not measured."""
        raise NotImplementedError("OpenVINO GenAI is measured with one text at a time")

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Not told by the pipeline."""
        raise NotImplementedError("the pipeline tells no scores")

    def _run(self, ids: list[int], count: int) -> Any:
        config = self._genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        tokens = np.asarray([ids], np.int64)
        inputs = self._genai.TokenizedInputs(self._tensor(tokens), self._tensor(np.ones_like(tokens)))
        return self._pipe.generate(inputs, config).perf_metrics
