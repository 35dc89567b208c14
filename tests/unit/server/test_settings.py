"""Settings: one list of names for the file, the options, the printed table and the docs."""

import dataclasses
import re
from pathlib import Path

import pytest

from gemworks.errors import ConfigError, StorageError
from gemworks.server.settings import LimitSettings, Settings, TlsSettings, described, sections
from gemworks.server.settings_file import read_settings, resolved, written


@pytest.fixture
def toml(tmp_path):
    """toml("port = 1") -> the settings of that file."""

    def read(text: str, options=None) -> Settings:
        (tmp_path / "serve.toml").write_text(text)
        return read_settings(tmp_path / "serve.toml", options)

    return read


def refusal(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_file_sets_every_kind_of_value(toml, tmp_path):
    made = toml(
        'host = "0.0.0.0"\nport = 8000\nkeys_file = "keys.json"\ngrace_s = 5\nimage_hosts = ["a.ex", "b.ex"]\n'
        '[models]\nnames = ["tiny"]\nany_local = false\ncontext = 512\n[limits]\nbody_bytes = "20MB"\nqueue = 7\n'
        '[telemetry]\nendpoint = "http://otel:4318"\n'
    )
    assert (made.host, made.port, made.grace_s) == ("0.0.0.0", 8000, 5.0)
    assert made.keys_file == tmp_path / "keys.json", "a path in a file is relative to the file"
    assert made.image_hosts == ("a.ex", "b.ex")
    assert (made.models.names, made.models.any_local, made.models.context) == (("tiny",), False, 512)
    assert (made.limits.body_bytes, made.limits.queue) == (20_000_000, 7)
    assert made.telemetry.endpoint == "http://otel:4318"
    assert made.limits.schema_bytes == LimitSettings().schema_bytes


def test_options_win_over_the_file_and_none_is_not_said(toml):
    made = toml("port = 1\ngrace_s = 2", {"port": ("--port", 9), "grace_s": ("--grace", None)})
    assert (made.port, made.grace_s) == (9, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 70000", "serve.toml, line 1: port must be from 0 to 65535, got 70000."),
        ('\nport = "a"', 'serve.toml, line 2: port must be a whole number, got "a".'),
        ("port = true", "serve.toml, line 1: port must be a whole number, got true."),
        ("[limits]\n# some\nqueue = 0", "serve.toml, line 3: limits.queue must be at least 1, got 0."),
        ("limits.queue = 0", "serve.toml, line 1: limits.queue must be at least 1, got 0."),
        (
            '[logs]\nlevel = "loud"',
            'serve.toml, line 2: logs.level must be one of debug, info, warning, error, got "loud".',
        ),
        ("[models]\nnames = [1]", 'serve.toml, line 2: models.names must be a list of texts, got ["1"].'),
        ("limits = 3", "serve.toml, line 1: limits is a section: write [limits] and its settings below."),
        ('limits.body_bytes = "3Q"', 'serve.toml, line 1: limits.body_bytes must be a size such as 20MB, got "3Q".'),
        ("[tls]\nkey = 'k'", "tls.key is set and tls.certificate is not: HTTPS needs both files."),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(toml, text, message):
    assert refusal(toml, text).endswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nprot = 1", "serve.toml, line 2: prot is no setting. Did you mean port?"),
        ("[limits]\nqueu = 1", "serve.toml, line 2: limits.queu is no setting. Did you mean limits.queue?"),
        ("queue = 1", "serve.toml, line 1: queue is no setting. Did you mean limits.queue?"),
        ("a = 1\n[limit]\nqueue = 1", "serve.toml, line 2: limit is no section. Did you mean [limits]?"),
        ("limits = {queu = 1}", "serve.toml, line 1: limits.queu is no setting. Did you mean limits.queue?"),
        ("xyzzy = 1", "serve.toml, line 1: xyzzy is no setting."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one_and_its_line(toml, text, message):
    assert any(line.endswith(message) for line in refusal(toml, text).splitlines())


def test_all_unknown_keys_are_told_at_once(toml):
    assert refusal(toml, "prot = 1\nhots = 2").count("is no setting") == 2


def test_what_is_no_toml_is_said(toml):
    assert "is not TOML" in refusal(toml, "port = ")


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(StorageError, match=r"--config.*cannot be read: No such file"):
        read_settings(tmp_path / "none.toml")


def test_an_option_out_of_range_is_told_by_its_own_name():
    with pytest.raises(ConfigError, match=r"^--port must be from 0 to 65535, got 70000\.$"):
        read_settings(None, {"port": ("--port", 70000)})


def test_every_setting_is_printed_and_none_is_a_secret():
    shown = {name: (value, plain) for name, value, plain in resolved(Settings(port=1))}
    fields = {f"{section}.{one}" if section else one for section, kind in sections().items() for one in described(kind)}
    assert set(shown) == fields
    everything = {
        f"{section}.{one.name}" if section else one.name
        for section, kind in sections().items()
        for one in dataclasses.fields(kind)
        if one.name not in sections()
    }
    assert fields == everything, "a setting without help"
    assert shown["port"] == ("1", False) and shown["host"] == ('"127.0.0.1"', True)


def test_a_password_in_an_address_is_masked():
    assert written("https://me:secret@collector/v1") == '"https://***@collector/v1"'


def test_what_is_printed_can_be_read_again(toml):
    """The resolved table is TOML but for the dashes of what is not set."""
    made = Settings(port=5, limits=LimitSettings(queue=3, body_bytes=123_456_789))
    text = "\n".join(f"{name} = {value}" for name, value, _ in resolved(made) if value != "-")
    assert toml(text) == made


def test_ranges_hold_in_python_too():
    with pytest.raises(ConfigError, match="queue must be at least 1, got 0"):
        LimitSettings(queue=0)
    with pytest.raises(ConfigError, match="HTTPS needs both files"):
        TlsSettings(certificate=Path("c"))


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host, is_loopback):
    assert Settings(host=host).is_loopback is is_loopback


def test_the_page_of_settings_tells_what_the_code_has(repo_root):
    """docs/serve.md lists every setting with its default and its help, and nothing else."""
    page = (repo_root / "docs" / "serve.md").read_text()
    for section, kind in sections().items():
        for name, (_, told) in described(kind).items():
            dotted = f"{section}.{name}" if section else name
            default = told.default or written(getattr(kind(), name))
            assert f"| `{dotted}` | `{default}` | {told.text} |" in page, dotted
    listed = page.partition("## Settings")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", listed, flags=re.M)) == {name for name, _, _ in resolved(Settings())}
