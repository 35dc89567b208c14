"""What config_json.py knows of each field of config.json. Data only.

Collected from the released files, from what transformers 4.50 to 5 write for both config classes (4.x dumps the
generation settings of its base class too), and from fine-tunes on the hub.
"""

from typing import Any, Final

# Fields that are used, with the value of a file that leaves them out (spec 2.2). null is as good as absent where
# the value here is None. The released nested configs leave out all that equals these, heads and vocabulary included.
DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": None,
    "layer_types": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}

# Fields that must say this if they say anything: the model has no switch for them.
REQUIRED_VALUES: Final[dict[str, Any]] = {
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}

# Fields that stand for another model or an unread format, unless they are null, false or empty; with the reason given.
REFUSED_FIELDS: Final[dict[str, str]] = {
    "use_bidirectional_attention": "this is an embedding model (EmbeddingGemma), which does not generate text",
    "quantization_config": "packed weights of this kind are not read",
    "compression_config": "packed weights of this kind are not read",
    "quantization": "packed weights of this kind (MLX) are not read",
    "is_encoder_decoder": "Gemma 3 is a decoder",
    "add_cross_attention": "Gemma 3 is a decoder",
    "pruned_heads": "pruned models are not read",
}

# Fields of the outer config of the nested form that describe its parts.
NESTED_FIELDS: Final = frozenset({"model_type", "text_config", "tie_word_embeddings"})

_TRAINING = "only training uses it"
_ORIGIN = "says who wrote the file"
_RUNTIME = "a switch of transformers' own runtime"
_DTYPE = "every tensor states its own"
_TOKENS = "read as a generation default, not as part of the model"
_SAMPLING = "a generation setting that transformers 4 dumped; generation_config.json counts"
_LABELS = "for classification heads, which are not loaded"
_VISION = "the vision half, which the text model does not use"

# Fields without effect on the text model, with the reason.
IGNORED_FIELDS: Final[dict[str, str]] = {
    "model_type": "read before the fields are",
    "gemworks_quantization": "read with the tensors it is about (quantized.py)",
    "architectures": "model_type decides",
    "auto_map": "no code from a checkpoint is ever run",
    "transformers_version": _ORIGIN,
    "_name_or_path": _ORIGIN,
    "name_or_path": _ORIGIN,
    "_commit_hash": _ORIGIN,
    "unsloth_version": _ORIGIN,
    "unsloth_fixed": _ORIGIN,
    "model_name": _ORIGIN,
    "finetuning_task": _ORIGIN,
    "torch_dtype": _DTYPE,
    "dtype": _DTYPE,
    "initializer_range": _TRAINING,
    "attention_dropout": _TRAINING,
    "use_bfloat16": _TRAINING,
    "gradient_checkpointing": _TRAINING,
    "use_cache": _RUNTIME,
    "cache_implementation": _RUNTIME,
    "_attn_implementation": _RUNTIME,
    "_attn_implementation_autoset": _RUNTIME,
    "_attn_implementation_internal": _RUNTIME,
    "attn_implementation": _RUNTIME,
    "_experts_implementation": _RUNTIME,
    "_output_attentions": _RUNTIME,
    "output_attentions": _RUNTIME,
    "output_hidden_states": _RUNTIME,
    "output_scores": _RUNTIME,
    "return_dict": _RUNTIME,
    "return_dict_in_generate": _RUNTIME,
    "torchscript": _RUNTIME,
    "tf_legacy_loss": _RUNTIME,
    "chunk_size_feed_forward": _RUNTIME,
    "use_kernel_forward_from_hub": _RUNTIME,
    "transformers.js_config": _RUNTIME,
    "is_decoder": "Gemma 3 is a decoder whatever it says",
    "tie_encoder_decoder": "there is no encoder",
    "cross_attention_hidden_size": "there is no encoder",
    "decoder_start_token_id": "there is no encoder",
    "tokenizer_class": "the tokenizer's files say what they are",
    "prefix": "the prompt is what the caller gives",
    "task_specific_params": "the prompt is what the caller gives",
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "pad_token_id": _TOKENS,
    "sep_token_id": "Gemma's vocabulary has no separator",
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type"), _LABELS),
    **dict.fromkeys(("yes_token_index", "no_token_index"), _LABELS),
    **dict.fromkeys(
        (
            "vision_config",
            "mm_tokens_per_image",
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
            "boi_token_id",
            "eoi_token_id",
            "image_token_id",
        ),
        _VISION,
    ),
    **dict.fromkeys(
        (
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "max_length",
            "min_length",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "num_return_sequences",
            "bad_words_ids",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "remove_invalid_values",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
        ),
        _SAMPLING,
    ),
}

# model_type -> how to call a model that is often mistaken for one of ours.
OTHER_MODELS: Final[dict[str, str]] = {
    "llama": "a Llama checkpoint",
    "mistral": "a Mistral checkpoint",
    "qwen2": "a Qwen 2 checkpoint",
    "qwen3": "a Qwen 3 checkpoint",
    "gemma": "a Gemma 1 checkpoint",
    "gemma2": "a Gemma 2 checkpoint",
    "gemma3n": "a Gemma 3n checkpoint",
    "gemma3n_text": "a Gemma 3n checkpoint",
    "gemma4": "a Gemma 4 checkpoint",
    "gemma4_text": "a Gemma 4 checkpoint",
    "paligemma": "a PaliGemma checkpoint",
    "siglip_vision_model": "a vision tower alone",
    "t5gemma": "a T5Gemma checkpoint",
}
