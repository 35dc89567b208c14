"""What `gemworks bench vision` compares, each in a process of its own: `python -m gemworks.bench.vision_systems NAME`.

    ours                    load_vision of the bf16 checkpoint, as a user gets it
    ours fp32               the same with dtype float32: the exact path
    xla                     the bf16 weights on ops/xla alone
    transformers float32    SiglipVisionModel on torch, and the projector
    transformers bfloat16
    llama.cpp               libmtmd of llama-cpp-python on the F16 file, as llama-mtmd-cli encodes a picture

Calls come in and results go out as JSON lines. A worker that is not asked sleeps on its stdin.
"""

import ctypes
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NAMES = ("ours", "ours fp32", "xla", "transformers float32", "transformers bfloat16", "llama.cpp")


class Encoder(Protocol):
    """A vision half that is loaded."""

    def encode(self, pixels_YXC: np.ndarray) -> np.ndarray:
        """Return the soft tokens of one picture of uint8 pixels, already of the tower's size."""
        ...


class Ours:
    """This package."""

    def __init__(self, folder: Path, dtype: str):
        from gemworks.weights.vision import load_vision

        self._vision = load_vision(folder, dtype=dtype)  # type: ignore[arg-type]

    def encode(self, pixels_YXC: np.ndarray) -> np.ndarray:
        """Tower and projector."""
        from gemworks.model.multimodal import encode

        return encode(self._vision, [_scaled(pixels_YXC)])[0]


class Transformers:
    """SiglipVisionModel of transformers with the attention it chooses itself; pool, norm and projector beside it."""

    def __init__(self, folder: Path, dtype: str, threads: int):
        import torch  # pyright: ignore[reportMissingImports]
        from safetensors.torch import load_file
        from transformers import SiglipVisionConfig, SiglipVisionModel  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._torch, self._dtype = torch, getattr(torch, dtype)
        self._tokens = about["mm_tokens_per_image"]
        with torch.device("meta"):
            model = SiglipVisionModel(SiglipVisionConfig(**about["vision_config"])).to(self._dtype)
        stored = {
            name.split("vision_model.")[-1]: array.to(self._dtype)
            for name, array in load_file(folder / "model.safetensors").items()
        }
        inner = "vision_model." if any(name.startswith("vision_model.") for name, _ in model.named_parameters()) else ""
        projector = {name.split(".")[-1]: stored.pop(name) for name in list(stored) if "multi_modal_projector" in name}
        self._gain, self._matrix = projector["weight"], projector["mm_input_projection_weight"]
        model.load_state_dict({inner + name: array for name, array in stored.items()}, assign=True, strict=False)
        embeddings: Any
        for name, embeddings in model.named_modules():
            if name.endswith("embeddings"):
                embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
        self._model = model.eval()

    def encode(self, pixels_YXC: np.ndarray) -> np.ndarray:
        """Tower, pool, norm and projector."""
        torch = self._torch
        with torch.inference_mode():
            hidden = self._model(torch.tensor(_scaled(pixels_YXC))[None].to(self._dtype)).last_hidden_state[0]
            side, pooled_side = round(hidden.shape[0] ** 0.5), round(self._tokens**0.5)
            pooled = torch.nn.functional.avg_pool2d(hidden.T.reshape(1, -1, side, side), side // pooled_side).reshape(
                hidden.shape[1], -1
            )
            x = pooled.T.float()
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self._gain.float())
            return (x.to(self._dtype) @ self._matrix).float().numpy()


class LlamaCpp:
    """libmtmd: a picture in, embeddings out. The decoder beside it is read and never run."""

    def __init__(self, folder: Path, threads: int):
        import llama_cpp  # pyright: ignore[reportMissingImports]
        from llama_cpp import mtmd_cpp  # pyright: ignore[reportMissingImports]

        self._api: Any = mtmd_cpp  # its annotations say None of what only fails with it
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model: Any = llama_cpp.llama_model_load_from_file(str(folder / "gguf" / "text.gguf").encode(), parameters)
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.print_timings, settings.n_threads = False, False, threads
        settings.warmup = False
        self._context = mtmd_cpp.mtmd_init_from_file(str(folder / "gguf" / "mmproj.gguf").encode(), model, settings)
        if not model or not self._context:
            raise RuntimeError("llama.cpp cannot load the files made for it")
        self._width = llama_cpp.llama_model_n_embd(model)

    def encode(self, pixels_YXC: np.ndarray) -> np.ndarray:
        """What llama.cpp's mtmd_encode_chunk computes; its own resizing finds the size right already."""
        api = self._api
        height, width, _ = pixels_YXC.shape
        data = np.ascontiguousarray(pixels_YXC)
        bitmap = api.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks, marker = api.mtmd_input_chunks_init(), api.mtmd_default_marker()
        text = api.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (api.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if api.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
            raise RuntimeError("llama.cpp does not take the picture")
        for i in range(api.mtmd_input_chunks_size(chunks)):
            chunk = api.mtmd_input_chunks_get(chunks, i)
            if api.mtmd_input_chunk_get_type(chunk) != api.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if api.mtmd_encode_chunk(self._context, chunk) != 0:
                raise RuntimeError("llama.cpp could not encode the picture")
            count = api.mtmd_input_chunk_get_n_tokens(chunk)
            out = np.ctypeslib.as_array(api.mtmd_get_output_embd(self._context), (count * self._width,)).copy()
            api.mtmd_input_chunks_free(chunks)
            api.mtmd_bitmap_free(bitmap)
            return out.reshape(count, self._width)
        raise RuntimeError("llama.cpp made no image of the picture")


def load(name: str, folder: Path, threads: int) -> Encoder:
    """Return the loaded system. Raises ImportError where it is not installed."""
    if name.startswith("transformers "):
        return Transformers(folder, name.split()[1], threads)
    if name == "llama.cpp":
        return LlamaCpp(folder, threads)
    return Ours(folder, "float32" if name == "ours fp32" else "bfloat16")


def _import(name: str) -> None:
    """Import what a system needs, so that the memory it takes before its weights can be told apart."""
    if name.startswith("transformers "):
        from transformers import SiglipVisionModel  # noqa: F401  # pyright: ignore[reportMissingImports]
    elif name == "llama.cpp":
        import llama_cpp.mtmd_cpp  # noqa: F401  # pyright: ignore[reportMissingImports]
    else:
        import jax

        import gemworks.weights.vision  # noqa: F401
        from gemworks.ops import select

        select.packs_towers()
        jax.device_put(np.zeros(1)).block_until_ready()


def _scaled(pixels_YXC: np.ndarray) -> np.ndarray:
    """uint8 [Y, X, C] -> [-1, 1] [C, Y, X]."""
    return np.moveaxis(pixels_YXC.astype(np.float32) / 127.5 - 1, -1, 0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _answer(encoder: Encoder, call: dict[str, Any], before: int) -> dict[str, Any]:
    from gemworks.bench.one_answer import peak_bytes

    pixels = np.load(call["picture"])
    started, cpu = time.perf_counter(), time.process_time()
    soft = encoder.encode(pixels)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    np.save(call["out"], soft)
    return {"seconds": seconds, "cpu_seconds": cpu, "extra_bytes": (peak_bytes() or 0) - before}


def main() -> None:
    """Load the system that the arguments name (name, folder, threads), then answer a line with a line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        _import(name)
        before = _resident()
        started = time.perf_counter()
        encoder = load(name, folder, threads)
        reply({"load_seconds": time.perf_counter() - started})
        for line in sys.stdin:
            reply(_answer(encoder, json.loads(line), before))
    except Exception as error:
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
