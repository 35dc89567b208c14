"""llama.cpp itself: it runs the files we write, and we read the files its quantizer writes.

Runs where llama-cpp-python is installed (a long build, so not part of the common extras).

llama.cpp keeps keys and values in float32 here, but its GELU is a half-precision table, so its logits differ from an
all-float32 computation by some ten-thousandths of their spread. A greedy continuation is the same as long as no two
best tokens are that close; the random models are made so that they rarely are (conftest.py).
"""

import numpy as np
import pytest

from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import convert
from gemworks.weights.gguf_blocks import dequantize
from gemworks.weights.gguf_file import GGUFFile
from gemworks.weights.gguf_write import write_gguf
from gemworks.weights.names import hf_from_ours

torch = pytest.importorskip("torch", reason="torch is not installed")
gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

# llama.cpp logs hundreds of lines a file.
_QUIET = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(_QUIET, None)

# Three times the window of 16, so that the sliding mask is seen. <bos>, then bytes and letters.
PROMPT = [2, *range(266, 288), *range(264, 290)]
NUM_NEW = 48
LOGIT_TOLERANCE = 0.005  # of the logits' standard deviation

# Seeds whose answers wander: five tokens or more.
ONE_EACH = [("1b", 0), ("4b", 1), ("27b", 0)]
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


class LlamaCpp:
    """A GGUF file in llama.cpp on the CPU."""

    def __init__(self, path):
        self._llama = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=128,
            n_batch=128,
            n_threads=1,  # its threads spin while they wait, which is slow on a busy machine
            n_threads_batch=1,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=True,  # False swaps the process's stdout for /dev/null and never closes it
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """One row per id."""
        self._llama.reset()
        self._llama.eval(ids)
        return np.array(self._llama.scores[: len(ids)])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The `count` most likely ids one after another, with the cache kept between steps."""
        self._llama.reset()
        answer: list[int] = []
        while len(answer) < count:
            self._llama.eval(answer[-1:] or ids)
            answer.append(int(self._llama.scores[self._llama.n_tokens - 1].argmax()))
        return answer

    def close(self) -> None:
        self._llama.close()


@pytest.fixture
def llama(request):
    def llama(path):
        model = LlamaCpp(path)
        request.addfinalizer(model.close)
        return model

    return llama


@pytest.fixture
def written(random_gemma, vocabulary, tmp_path):
    """written(shape, seed, outtype): (transformers model, path of our GGUF)."""

    def written(shape: str, seed: int, outtype: str):
        model, directory = random_gemma(shape, seed)
        path = tmp_path / f"{shape}-{seed}-{outtype}.gguf"
        with open_checkpoint(directory) as checkpoint:
            write_gguf(checkpoint, vocabulary, path, outtype, chat_template=CHAT_TEMPLATE)
        return model, path

    return written


def transformers_logits(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def is_greedy(model, ids: list[int], answer: list[int]) -> bool:
    """Whether transformers, asked after each token, would have continued `ids` with exactly `answer`."""
    chosen = transformers_logits(model, ids + answer).argmax(axis=1)
    return chosen[len(ids) - 1 : -1].tolist() == answer


@pytest.mark.parametrize(("shape", "seed"), [*ONE_EACH, ("1b", 2), ("4b", 3), ("27b", 2)])
def test_llama_cpp_continues_our_file_as_transformers_does(written, llama, shape, seed):
    """The window, the factor of 8, and 27B's scale from 62 layers: llama.cpp takes them all from our metadata."""
    model, path = written(shape, seed, "f32")
    runtime = llama(path)
    wanted = transformers_logits(model, PROMPT)
    assert np.abs(runtime.logits(PROMPT) - wanted).max() < LOGIT_TOLERANCE * wanted.std()
    answer = runtime.greedy(PROMPT, NUM_NEW)
    assert len(set(answer)) >= 5 and is_greedy(model, PROMPT, answer)


@pytest.mark.parametrize(("shape", "seed"), ONE_EACH)
def test_gemworks_continues_the_same_file_the_same_way(written, llama, shape, seed):
    from gemworks import LLM

    _, path = written(shape, seed, "f32")
    ours = LLM(path, dtype="float32").generate(PROMPT, temperature=0, max_tokens=NUM_NEW).token_ids
    assert len(ours) == NUM_NEW and ours == llama(path).greedy(PROMPT, NUM_NEW)


def test_a_file_converted_from_our_export_continues_the_same_way(written, llama, tmp_path):
    """GGUF -> Hugging Face directory -> GGUF: the same continuation in llama.cpp."""
    model, path = written("4b", 1, "f32")
    convert(path, tmp_path / "export")
    convert(tmp_path / "export", tmp_path / "again.gguf", outtype="f32")
    answer = llama(tmp_path / "again.gguf").greedy(PROMPT, NUM_NEW)
    assert answer == llama(path).greedy(PROMPT, NUM_NEW) and is_greedy(model, PROMPT, answer)


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_llama_cpp_runs_every_outtype(written, llama, outtype):
    """Against transformers with the weights we say are in the file. llama.cpp quantizes activations to 8 bits."""
    model, path = written("1b", 0, outtype)
    with open_checkpoint(path) as checkpoint, torch.no_grad():
        for name in checkpoint.entries:
            stored = checkpoint.read(name).astype(np.float32)
            model.get_parameter(hf_from_ours(name)).copy_(torch.from_numpy(stored))
    wanted = transformers_logits(model, PROMPT)
    found = llama(path).logits(PROMPT)
    assert np.abs(found - wanted).max() < 0.2 * wanted.std()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.998


QUANTIZED = {
    "Q4_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, {"Q4_0", "Q6_K"}),
    "Q8_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, {"Q8_0"}),
    "Q4_K_M": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, {"Q4_K", "Q6_K"}),
    "Q5_K_M": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M, {"Q5_K", "Q6_K"}),
    "Q6_K": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K, {"Q6_K"}),
}


@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_we_read_what_its_quantizer_writes(written, llama, tmp_path, name):
    """Every tensor equals ggml's own decoding bit for bit, and the file is a model for us."""
    _, source = written("4b", 0, "f16")
    target = tmp_path / "quantized.gguf"
    ftype, wanted_types = QUANTIZED[name]
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = ftype, 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings) == 0
    with open_checkpoint(target) as checkpoint, open_checkpoint(source) as before:
        assert checkpoint.config == before.config
        assert checkpoint.vocabulary() == before.vocabulary()
        assert checkpoint.chat_template == CHAT_TEMPLATE
        assert {entry.dtype for entry in checkpoint.entries.values()} == {*wanted_types, "F32"}
        embed, original = checkpoint.read("embed.weight"), before.read("embed.weight").astype(np.float32)
        assert np.abs(embed - original).max() < 0.25 * original.std()
    file = GGUFFile(target)
    for tensor in gguf.GGUFReader(target).tensors:
        info = file.tensors[tensor.name]
        ours = dequantize(file.bytes_of(tensor.name), info.kind.name, info.shape)
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert (ours.view(np.uint32) == wanted.reshape(info.shape).view(np.uint32)).all(), tensor.name


@pytest.mark.parametrize("outtype", ["q4_0", "q8_0", "bf16", "f16"])
def test_its_quantizer_and_ours_write_the_same_blocks(written, tmp_path, outtype):
    """From the same f32 file, with the embedding in the same type (`pure`): every tensor's bytes are equal."""
    _, source = written("1b", 1, "f32")
    theirs = tmp_path / "theirs.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{outtype.upper()}"), 2
    settings.pure = True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), settings) == 0
    with open_checkpoint(source) as checkpoint:
        write_gguf(checkpoint, checkpoint.vocabulary(), tmp_path / "ours.gguf", outtype, pure=True)
    a, b = GGUFFile(tmp_path / "ours.gguf"), GGUFFile(theirs)
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name in a.tensors if a.bytes_of(name) != b.bytes_of(name)] == []
