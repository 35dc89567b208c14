"""API keys: hashed, compared in constant time, read again when the file changes."""

import ast
import contextlib
import hmac
import inspect
import json
import stat

import pytest

from gemworks.errors import AccessError, ConfigError, StorageError
from gemworks.server import keys as keys_module
from gemworks.server.keys import RECHECK_S, Keys, add_key, read_keys, revoke_key


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_stands_for_its_caller_and_limits(file):
    key = add_key(file, "ann", requests_per_minute=5, tokens_per_minute=6, concurrency=7, priority=1, is_admin=True)
    caller = Keys(file).caller(key)
    assert (caller.name, caller.requests_per_minute, caller.tokens_per_minute) == ("ann", 5, 6)
    assert (caller.concurrency, caller.priority, caller.is_admin) == (7, 1, True)


def test_the_file_holds_neither_a_key_nor_its_secret_and_is_the_owners(file):
    key = add_key(file, "ann")
    _, identity, secret = key.split("_")
    text = file.read_text()
    assert secret not in text and key not in text and identity in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_keys_of_one_secret_would_have_two_hashes(file, monkeypatch):
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda n: "ab" * n)
    add_key(file, "ann")
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda n: ("cd" if n == 4 else "ab") * n)
    add_key(file, "bob")
    one, other = read_keys(file)
    assert one.salt != other.salt and one.hash != other.hash


def wrong_keys(key: str) -> list[str | None]:
    _, identity, secret = key.split("_")
    flipped = ("0" if secret[-1] != "0" else "1") + secret[1:]
    return [
        None,
        "",
        "x",
        "sk-something",
        f"gw_{identity}_{flipped}",
        f"gw_{identity}_{secret[:-1]}{'0' if secret[-1] != '0' else '1'}",
        f"gw_{'0' * 8}_{secret}",
        f"gw_{identity}_",
        f"{key} ",
        f"{key}\n",
        key.upper(),
        "gw_\u00e4",
        "a" * 100_000,
    ]


def test_wrong_keys_are_refused(file):
    key = add_key(file, "ann")
    keys = Keys(file)
    for wrong in wrong_keys(key):
        with pytest.raises(AccessError) as caught:
            keys.caller(wrong)
        assert not caught.value.forbidden
        assert len(wrong or "") < 8 or wrong not in str(caught.value), "a message repeats no key"


def test_every_key_is_compared_by_one_compare_digest_of_equal_lengths(file, monkeypatch):
    """Whatever is sent, the same work is done: one SHA-256 and one comparison of two digests."""
    key = add_key(file, "ann")
    keys = Keys(file)
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(one, other):
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", counted)
    for sent in [key, *wrong_keys(key)]:
        compared.clear()
        with contextlib.suppress(AccessError):
            keys.caller(sent)
        assert compared == [(32, 32)], sent


def test_no_other_comparison_touches_a_secret():
    """In the source of `caller`, nothing but compare_digest compares; the row is found by the identity alone."""
    source = ast.parse(inspect.getsource(Keys.caller).lstrip().replace("\n    ", "\n"))
    assert not [node for node in ast.walk(source) if isinstance(node, ast.Compare) and "None" not in ast.dump(node)]
    calls = [ast.unparse(node.func) for node in ast.walk(source) if isinstance(node, ast.Call)]
    assert calls.count("hmac.compare_digest") == 1


def test_a_name_is_given_once_and_must_be_plain(file):
    add_key(file, "ann")
    with pytest.raises(ConfigError, match='a key named "ann" already'):
        add_key(file, "ann")
    for name in ("", "a b", "-x", "a/b", "a" * 65, "a\n"):
        with pytest.raises(ConfigError, match="a key's name must be"):
            add_key(file, name)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        add_key(file, "bob", requests_per_minute=0)
    assert [row.name for row in read_keys(file)] == ["ann"]


def test_a_change_is_seen_within_a_second_and_a_revoked_key_is_refused(file):
    clock = Clock()
    ann = add_key(file, "ann")
    keys = Keys(file, clock=clock)
    bob = add_key(file, "bob")
    with pytest.raises(AccessError):
        keys.caller(bob)
    clock.now += RECHECK_S
    assert keys.caller(bob).name == "bob" and keys.caller(ann).name == "ann"
    revoke_key(file, "ann")
    clock.now += RECHECK_S
    with pytest.raises(AccessError):
        keys.caller(ann)
    assert keys.caller(bob).name == "bob"


def test_the_file_is_looked_at_once_a_second_at_most(file, monkeypatch):
    clock, looked = Clock(), []
    key = add_key(file, "ann")
    keys = Keys(file, clock=clock)
    monkeypatch.setattr(keys_module, "_stamp", lambda file: looked.append(file))
    for _ in range(100):
        clock.now += RECHECK_S / 50
        keys.caller(key)
    assert len(looked) == 2


@pytest.mark.parametrize("harm", ["not json", "gone", "no row"])
def test_a_broken_file_keeps_the_keys_and_is_told_until_it_is_mended(file, harm):
    clock = Clock()
    key = add_key(file, "ann")
    keys, good = Keys(file, clock=clock), file.read_text()
    if harm == "gone":
        file.unlink()
    else:
        file.write_text("{" if harm == "not json" else json.dumps({"version": 1, "keys": [{"name": "x"}]}))
    clock.now += RECHECK_S
    assert keys.caller(key).name == "ann" and keys.problem is not None and str(file) in keys.problem
    file.write_text(good)
    clock.now += RECHECK_S
    assert keys.caller(key).name == "ann" and keys.problem is None


def test_what_is_no_keys_file_is_said(file):
    with pytest.raises(
        StorageError, match=r"does not exist. Make a key with: gemworks key add NAME --keys .*keys.json"
    ):
        read_keys(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="is no keys file of Gemworks"):
        read_keys(file)
    file.write_text('{"version": 9, "keys": []}')
    with pytest.raises(ConfigError, match="version 9; this Gemworks reads 1"):
        read_keys(file)


def test_revoking_what_is_not_there_names_what_is(file):
    add_key(file, "ann")
    with pytest.raises(ConfigError, match=r'no key named "bob" in .*Its keys: ann\.'):
        revoke_key(file, "bob")
