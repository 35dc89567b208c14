"""gemworks serve, key and usage, in this process: what they print and how they refuse."""

import json
import re

import pytest

from gemworks.cli.main import run_command
from gemworks.server.keys import Keys
from gemworks.server.record import Record
from gemworks.server.usage import Usage


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def gemworks(home, capsys):
    """gemworks("key", "list") -> (exit code, stdout, stderr)."""

    def run(*arguments):
        code = run_command([str(one) for one in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_a_key_is_shown_once_listed_by_name_and_revoked(gemworks, home):
    code, key, err = gemworks("key", "add", "ann", "--requests-per-minute", 60, "--concurrency", 2, "--priority", 1)
    assert code == 0 and re.fullmatch(r"gw_[0-9a-f]{8}_[0-9a-f]{48}\n", key)
    assert "only its hash" in err and f"--keys {home / 'keys.json'}" in err
    assert Keys(home / "keys.json").caller(key.strip()).concurrency == 2
    code, listed, _ = gemworks("key", "list")
    assert code == 0 and listed.splitlines()[1].split()[0] == "ann" and key.strip() not in listed
    rows = json.loads(gemworks("key", "list", "--json")[1])
    assert rows[0]["requests_per_minute"] == 60 and rows[0]["is_admin"] is False and "hash" not in rows[0]
    assert gemworks("key", "revoke", "ann")[:2] == (0, "Revoked ann.\n")
    assert json.loads(gemworks("key", "list", "--json")[1]) == []


def test_a_key_for_programs_is_one_object_and_may_be_in_another_file(gemworks, tmp_path):
    _, out, err = gemworks("key", "add", "ops", "--admin", "--json", "--keys", tmp_path / "k.json")
    made = json.loads(out)
    assert made["name"] == "ops" and made["file"] == str(tmp_path / "k.json") and err == ""
    assert Keys(tmp_path / "k.json").caller(made["key"]).is_admin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("key", "revoke", "ann"), 'Error: there is no key named "ann"'),
        (("key", "add", "a b"), "Error: a key's name must be 1 to 64 letters"),
        (("key", "add", "a", "--concurrency", 0), "Error: limits must be whole numbers of at least 1, got 0."),
        (("key", "list", "--keys", "none.json"), "Error: none.json does not exist. Make a key with: gemworks key add"),
        (("usage",), "does not exist: no server has counted anything there yet."),
        (("usage", "--since", "yesterday"), 'Error: --since must be a day such as 2026-01-31, got "yesterday".'),
        (("serve", "tiny", "--port", 70000), "Error: --port must be from 0 to 65535, got 70000."),
        (("serve", "tiny", "--keys", "none.json"), "Error: none.json does not exist. Make a key with:"),
        (("serve", "nonesuch"), "Error: "),
        (("serve", "tiny", "--certificate", "c.pem"), "tls.certificate is set and tls.key is not"),
        (("serve", "tiny", "--certificate", "c.pem", "--private-key", "k.pem"), "PEM: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_message_and_code_2(gemworks, arguments, message):
    code, out, err = gemworks(*arguments)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_usage_is_a_table_or_rows(gemworks, home):
    books = Usage(home / "usage.sqlite")
    for key, model in (("ann", "tiny"), ("ann", "other"), ("", "tiny")):
        books.add(
            Record(
                id="r", method="POST", path="/", key=key, model=model, call="chat", outcome="done", prompt_tokens=1500
            )
        )
    books.close()
    code, out, _ = gemworks("usage")
    assert code == 0 and [line.split()[:2] for line in out.splitlines()[1:]] == [["(no", "key)"], ["ann", "2"]]
    assert "3,000" in out
    rows = json.loads(gemworks("usage", "--by", "model,key", "--json")[1])
    assert [(row["model"], row["key"], row["requests"]) for row in rows] == [
        ("other", "ann", 1),
        ("tiny", "", 1),
        ("tiny", "ann", 1),
    ]


def test_a_dry_run_prints_every_setting_resolved(gemworks, tmp_path):
    (tmp_path / "serve.toml").write_text('port = 8000\n[models]\nnames = ["gemma3:1b"]\n[limits]\nqueue = 9\n')
    code, out, _ = gemworks("serve", "tiny", "--config", tmp_path / "serve.toml", "--port", 9000, "--dry-run")
    told = dict(line.split(None, 1) for line in out.splitlines())
    assert code == 0
    assert (told["port"], told["models.names"], told["limits.queue"]) == ("9000", '["tiny"]', "9")
    assert told["host"] == '"127.0.0.1"' and told["keys_file"] == "-"


def test_an_unknown_setting_ends_the_start_with_its_line(gemworks, tmp_path):
    (tmp_path / "serve.toml").write_text("[limits]\nqueu = 9\n")
    code, _, err = gemworks("serve", "tiny", "--config", tmp_path / "serve.toml")
    assert code == 2 and "serve.toml, line 2: limits.queu is no setting. Did you mean limits.queue?" in err


def test_strangers_without_keys_are_warned_of_and_loopback_is_not(home, capsys):
    from gemworks.cli.serve import _check
    from gemworks.server.settings import ModelSettings, Settings

    tiny = ModelSettings(names=("tiny",))
    _check(Settings(models=tiny))
    assert capsys.readouterr().err == ""
    _check(Settings(models=tiny, host="0.0.0.0"))
    told = capsys.readouterr().err
    assert "Warning: no API keys are used, and 0.0.0.0 is reached from other machines: whoever can connect may" in told
    assert "gemworks key add NAME" in told and "--keys FILE" in told


def test_a_keys_file_without_keys_is_warned_of(gemworks, home, capsys):
    from gemworks.cli.serve import _check
    from gemworks.server.settings import ModelSettings, Settings

    gemworks("key", "add", "ann")
    gemworks("key", "revoke", "ann")
    _check(Settings(models=ModelSettings(names=("tiny",)), keys_file=home / "keys.json"))
    assert "has no keys: every call will be refused" in capsys.readouterr().err
