"""The name=value arguments of a Ray application; what builds it is a double, so there is no Ray."""

import pytest

from gemworks.cli import ray_app
from gemworks.errors import ConfigError
from gemworks.server import ray_app as application


@pytest.fixture
def built(monkeypatch):
    """What was asked to be built: (settings, the other arguments)."""
    calls = []
    monkeypatch.setattr(application, "build", lambda settings, load, **more: calls.append((settings, more)))
    return calls


def test_arguments_are_settings_over_those_of_the_file(built, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text('[models]\nnames = ["a"]\nkv = "int8"\ncontext = 128\n')
    told = {
        "model": "tiny,other",
        "config": str(config),
        "context": "256",
        "replicas": "3",
        "cpus": "2",
        "quant": "int8",
    }
    ray_app.app(told)
    [(settings, more)] = built
    models = settings.models
    assert (list(models.names), models.context, models.quant, models.kv) == (["tiny", "other"], 256, "int8", "int8")
    assert more == {"replicas": 3, "cpus": 2.0, "gpus": 0.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "there is nothing to serve"),
        ({"modle": "tiny"}, "unknown argument modle="),
        ({"model": "tiny", "context": "many"}, 'context must be a number of 0 or more, got "many"'),
        ({"model": "tiny", "replicas": "-1"}, "replicas must be a number"),
    ],
)
def test_wrong_arguments_are_named(built, arguments, said):
    with pytest.raises(ConfigError, match=said):
        ray_app.app(arguments)
    assert not built
