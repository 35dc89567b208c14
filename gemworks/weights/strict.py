"""The strict check of a checkpoint's tensors, shared by safetensors and GGUF: one error that names everything wrong.

    gemma-3-4b-it (2 files): 1 tensor is missing and 2 are unknown.
      missing  layers.33.ffw.down.weight  [2560, 10240]  (expected as model.layers.33.mlp.down_proj.weight)
      unknown  model.layers.33.mlp.down_proj.qweight  [1280, 2560] I32  (model.safetensors)
      unknown  model.layers.33.mlp.down_proj.scales  [80, 2560] F16  (model.safetensors)
    These look like GPTQ or AWQ weights ...

The vision half is known and skipped. A head that is stored although the config ties it to the embedding must hold
the same bits; then it is dropped, else both are named.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from gemworks.errors import CheckpointError
from gemworks.model.config import TextConfig
from gemworks.weights.checkpoint import StoredTensor, TensorEntry
from gemworks.weights.names import HEAD, IGNORED, TABLE, expected_shapes

EMBED = TABLE[0].ours

# How many offenders of each kind a message lists; the rest are counted.
SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabularies:
    """How one format names tensors: published -> ours (or IGNORED or None), ours -> published, and allowed dtypes."""

    ours: Callable[[str], object]
    published: Callable[[str], str]
    dtypes: Collection[str]


@dataclass(slots=True)
class _Findings:
    """What is wrong, by kind; the kinds are printed in this order."""

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong_type: list[str] = field(default_factory=list)
    conflict: list[str] = field(default_factory=list)

    def kinds(self) -> list[tuple[list[str], str, str]]:
        """(lines, label, end of the sentence) of every kind that occurred."""
        table = [
            (self.missing, "missing", "missing"),
            (self.unknown, "unknown", "unknown"),
            (self.misshapen, "shape", "of another shape"),
            (self.doubled, "twice", "stored under two names"),
            (self.wrong_type, "dtype", "of a dtype that cannot be read"),
            (self.conflict, "head", "in conflict with the config"),
        ]
        return [row for row in table if row[0]]


def match_tensors(
    subject: str,
    stored: Sequence[StoredTensor],
    config: TextConfig,
    names: Vocabularies,
    *,
    same_bits: Callable[[StoredTensor, StoredTensor], bool],
) -> dict[str, TensorEntry]:
    """The model's tensors, our name -> entry, in the order of `expected_shapes`.

    `subject` is what the user called the checkpoint, with its number of files. `same_bits` compares two stored
    tensors; it is called at most once, for a head beside a tied embedding. Raises one CheckpointError of everything.
    """
    expected = expected_shapes(config)
    findings = _Findings()
    found: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = names.ours(tensor.published)
        if name is IGNORED:
            continue
        if not isinstance(name, str) or (name not in expected and name != HEAD.ours):
            findings.unknown.append(f"{tensor.published}  {_form(tensor)}  ({tensor.file.name})")
        elif name in found:
            findings.doubled.append(f"{name}  as {found[name].published} and {tensor.published}")
        else:
            found[name] = tensor
    for name, shape in expected.items():
        if name not in found:
            findings.missing.append(f"{name}  {list(shape)}  (expected as {names.published(name)})")
    for name, tensor in found.items():
        shape = expected.get(name, expected[EMBED])
        if tensor.shape != shape:
            findings.misshapen.append(
                f"{name}  has {list(tensor.shape)}, wants {list(shape)}  ({tensor.published} in {tensor.file.name})"
            )
        elif tensor.dtype not in names.dtypes:
            findings.wrong_type.append(f"{tensor.published}  {_form(tensor)}  ({tensor.file.name})")
    if HEAD.ours in found and HEAD.ours not in expected and EMBED in found:
        head, embed = found.pop(HEAD.ours), found[EMBED]
        if head.shape == embed.shape and not same_bits(head, embed):
            findings.conflict.append(f"{head.published} differs from {embed.published}, but the config ties them")
    if findings.kinds():
        raise CheckpointError(_message(subject, findings, stored, config, names))
    return {name: _entry(name, found[name]) for name in expected}


def _entry(name: str, tensor: StoredTensor) -> TensorEntry:
    return TensorEntry(
        name=name,
        published=tensor.published,
        shape=tensor.shape,
        dtype=tensor.dtype,
        num_bytes=tensor.num_bytes,
        file=tensor.file,
    )


def _form(tensor: StoredTensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _message(
    subject: str, findings: _Findings, stored: Sequence[StoredTensor], config: TextConfig, names: Vocabularies
) -> str:
    counts, lines = [], []
    for offenders, label, words in findings.kinds():
        noun = " tensors" if not counts and len(offenders) > 1 else " tensor" if not counts else ""
        counts.append(f"{len(offenders)}{noun} {'is' if len(offenders) == 1 else 'are'} {words}")
        lines += [f"  {label:<7}  {offender}" for offender in offenders[:SHOWN]]
        if len(offenders) > SHOWN:
            lines.append(f"  {label:<7}  ... and {len(offenders) - SHOWN} more")
    summary = counts[0] if len(counts) == 1 else ", ".join(counts[:-1]) + " and " + counts[-1]
    hint = _hint(findings, stored, config, names)
    return "\n".join([f"{subject}: {summary}.", *lines, hint])


# Endings of tensor names that only a packed or wrapped checkpoint has, and what to say. First match wins.
_TELLTALES = (
    (
        r"\.(qweight|qzeros|g_idx)$",
        "These look like GPTQ or AWQ weights, which are not read. Use the bf16 release, or a Q4_0 GGUF.",
    ),
    (
        r"\.(absmax|quant_map|nested_absmax|SCB|weight_format)$|\.quant_state\.",
        "These look like bitsandbytes weights, which are not read. Use the bf16 release, or a Q4_0 GGUF.",
    ),
    (
        r"\.(weight_packed|weight_scale|weight_shape|weight_zero_point|input_scale|weight_scale_inv)$",
        "These look like compressed-tensors weights, which are not read. Use the bf16 release, or a Q4_0 GGUF.",
    ),
    (
        r"\.(scales|biases)$",
        "These look like MLX-quantized weights, which are not read. Use the bf16 release, or a Q4_0 GGUF.",
    ),
    (
        r"\.lora_[AB]\.|lora_embedding_|lora_magnitude",
        "These are a LoRA adapter's tensors. Merge the adapter into its base model first, or point at the base model.",
    ),
    (r"\.base_layer\.", "The model was saved inside a PEFT wrapper. Merge or unload the adapter, then save it again."),
    (r"^_orig_mod\.", "The model was saved inside torch.compile. Save the model it wraps."),
    (r"_proj\.bias$", "Gemma 3 has no biases in its text model; these look like the weights of a Qwen model."),
)


def _hint(findings: _Findings, stored: Sequence[StoredTensor], config: TextConfig, names: Vocabularies) -> str:
    """The last sentence of the message: what it likely means and what to do."""
    published = [tensor.published for tensor in stored]
    unknown = [name for name in published if names.ours(name) is None]
    for pattern, hint in _TELLTALES:
        if any(re.search(pattern, name) for name in unknown):
            return hint
    if findings.conflict:
        return 'A fine-tune that trained its head must say "tie_word_embeddings": false in config.json.'
    if published and all(names.ours(name) is IGNORED for name in published):
        return "The file holds only the vision half of a model. Point at the file of its text half."
    present = {str(names.ours(name)).split(".", 2)[-1] for name in published}
    if "attn.q.weight" in present and "attn.q_norm.scale" not in present:
        family = "a Gemma 2 model" if "ffw_pre_norm.scale" in present else "a Llama or Mistral model"
        return f"Without query and key norms this looks like {family}; Gemworks runs Gemma 3."
    layers = {int(match[1]) for name in published if (match := re.search(r"(?:layers|blk)\.(\d+)\.", str(name)))}
    if layers and (have := max(layers) + 1) != len(config.layers):
        return f"The file has {have} layers and the config says {len(config.layers)}: they are of different models."
    if findings.misshapen:
        return "The weights and the config are of different models, or a tensor was resized: fetch the model again."
    if findings.wrong_type:
        return f"Readable are {', '.join(names.dtypes)}. Save the model in one of them."
    if findings.doubled:
        return "Two saves were merged into one. Keep one of each pair."
    return "The checkpoint was saved or fetched in part, or its config is of another model: fetch it again."
