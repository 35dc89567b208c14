"""A model that reads text only: the embedded one without its eyes, for tests of what such a model says of images."""

import json
import shutil
from pathlib import Path

from gemworks.weights.hub import TINY


def save_text_model(folder: Path) -> Path:
    """Write the text half of `tiny` as the directory `folder`, with a config.json that knows no eyes, and return it."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    flat = config["text_config"] | ids | {"architectures": ["Gemma3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(flat))
    return folder
