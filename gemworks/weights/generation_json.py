"""generation_config.json of Hugging Face <-> GenerationDefaults.

A file that states some sampling field but not another means transformers' default for the other; a file that states
none of them means Gemma's own (spec 13). Length limits are not read: the context is the limit.
"""

from typing import Any, NoReturn

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.config_json import eos_ids_from_json

# What transformers does where a file that sets up sampling leaves a field out.
_TRANSFORMERS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


def generation_defaults_from_json(
    generation: dict[str, Any] | None, where: str, *, config: dict[str, Any] | None = None
) -> GenerationDefaults:
    """The defaults in a generation_config.json, or, where there is none, what its config.json (`config`) says of ids.

    `where` is the file as the user knows it. Raises CheckpointError naming a field and its value if it is not usable.
    """
    stated = {key: value for key, value in (generation or {}).items() if value is not None}
    ids = stated if generation is not None else (config or {})
    gemma = GenerationDefaults()
    sampling = _TRANSFORMERS if stated.keys() & {"do_sample", *_TRANSFORMERS} else _sampling_of(gemma)
    do_sample = stated.get("do_sample", True)
    if not isinstance(do_sample, bool):
        _refuse(where, "do_sample", do_sample, "true or false")
    return GenerationDefaults(
        eos_ids=_eos_ids(stated, config, where),
        bos_id=_token_id(ids, "bos_token_id", gemma.bos_id, where),
        pad_id=_token_id(ids, "pad_token_id", gemma.pad_id, where),
        temperature=_number(stated, "temperature", sampling, where, most=float("inf")),
        top_k=int(_number(stated, "top_k", sampling, where, most=2**31)),
        top_p=_number(stated, "top_p", sampling, where, most=1.0),
        do_sample=do_sample,
    )


def _sampling_of(defaults: GenerationDefaults) -> dict[str, float]:
    """The sampling numbers of `defaults` by their published names."""
    return {"temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p}


def json_from_generation_defaults(defaults: GenerationDefaults) -> dict[str, Any]:
    """A generation_config.json that says the same to transformers."""
    eos: int | list[int] = defaults.eos_ids[0] if len(defaults.eos_ids) == 1 else list(defaults.eos_ids)
    return {
        "bos_token_id": defaults.bos_id,
        "do_sample": defaults.do_sample,
        "eos_token_id": eos,
        "pad_token_id": defaults.pad_id,
        **_sampling_of(defaults),
    }


def _eos_ids(stated: dict[str, Any], config: dict[str, Any] | None, where: str) -> tuple[int, ...]:
    if "eos_token_id" in stated:
        ids = eos_ids_from_json(stated)
        if ids is None:
            _refuse(where, "eos_token_id", stated["eos_token_id"], "a token id or a list of them")
        return ids
    return eos_ids_from_json(config or {}) or GenerationDefaults().eos_ids


def _token_id(fields: dict[str, Any], key: str, default: int, where: str) -> int:
    value = fields.get(key)
    if value is None and isinstance(fields.get("text_config"), dict):
        value = fields["text_config"].get(key)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        _refuse(where, key, value, "a token id")
    return value


def _number(stated: dict[str, Any], key: str, defaults: dict[str, Any], where: str, *, most: float) -> float:
    value = stated.get(key, defaults[key])
    if type(value) not in (int, float) or not 0 <= value <= most:
        _refuse(where, key, value, f"a number from 0 to {most:g}" if most < 2 else "a number of at least 0")
    return value


def _refuse(where: str, key: str, value: Any, wanted: str) -> NoReturn:
    raise CheckpointError(f"{where}: {key} must be {wanted}, got {value!r}.\nCorrect the file, or fetch it again.")
