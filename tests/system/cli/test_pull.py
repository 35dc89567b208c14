"""`gemworks pull` against a hub on this machine: what arrives, what a kill leaves, and what is said when it fails."""

import json
import os
import signal
import subprocess
import sys

import pytest

REPO = "google/gemma-3-1b-it"


@pytest.fixture
def weights():
    return os.urandom(3_000_000)


@pytest.fixture
def published(hub, weights):
    """A repository as google publishes them, with things that nobody needs."""
    return hub.add(
        REPO,
        {
            "model.safetensors": weights,
            "config.json": b'{"model_type": "gemma3_text"}',
            "tokenizer.json": b"{}",
            "tokenizer.model": b"spm",
            "README.md": b"read me",
            "pytorch_model.bin": b"pickle",
            "../escape.json": b"no",
            "sub/other.safetensors": b"no",
        },
    )


def model_folder(home):
    return home / "models" / "google" / "gemma-3-1b-it"


def start_pull(environment, hub):
    command = [sys.executable, "-m", "gemworks", "pull", "gemma3:1b", "--endpoint", hub.url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def parts(home):
    folder = home / "models" / ".partial" / "google" / "gemma-3-1b-it"
    return list(folder.glob(".model.safetensors.*.part")) if folder.is_dir() else []


def test_pull_fetches_weights_configs_and_tokenizer_only(gemworks, hub, published, home, weights):
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "gemma3:1b is ready (3 MB fetched). Try: gemworks run gemma3:1b\n"
    names = sorted(path.name for path in model_folder(home).iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    assert (model_folder(home) / "model.safetensors").read_bytes() == weights
    assert not (home / "models" / ".partial" / "google").exists()
    listed = json.loads(gemworks("list", "--json").stdout)["models"]
    assert [(row["name"], row["size_bytes"]) for row in listed if row["kind"] == "pulled"] == [("gemma3:1b", 3_000_000)]


def test_a_second_pull_fetches_nothing(gemworks, hub, published):
    gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    hub.requests.clear()
    done = gemworks("pull", "google/gemma-3-1b-it", "--json", HF_ENDPOINT=hub.url)
    assert json.loads(done.stdout)["fetched_bytes"] == 0
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_a_new_version_replaces_the_model_and_keeps_files_that_did_not_change(gemworks, hub, published, home):
    gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    published.commit = "d" * 40
    published.files["config.json"] = b'{"model_type": "gemma3_text", "new": 1}'
    del published.files["tokenizer.model"]
    hub.requests.clear()
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url, "--json")
    assert json.loads(done.stdout)["fetched_bytes"] == len(published.files["config.json"])
    assert hub.sent_ranges("model.safetensors") == []
    assert json.loads((model_folder(home) / "config.json").read_text())["new"] == 1
    assert not (model_folder(home) / "tokenizer.model").exists()


def test_a_killed_pull_leaves_no_model_and_the_next_one_goes_on_from_its_byte(
    gemworks, hub, published, home, weights, environment, wait_for
):
    hub.bytes_per_second = 2_000_000
    process = start_pull(environment, hub)
    wait_for(lambda: any(part.stat().st_size >= 1_000_000 for part in parts(home)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [part] = parts(home)
    kept = part.stat().st_size
    assert 1_000_000 <= kept < len(weights)
    refused = gemworks("show", "gemma3:1b")
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: gemma3:1b is not on this machine. A pull of it was begun and not finished.\n"
        "Fetch it with: gemworks pull gemma3:1b\n"
    )
    listed = json.loads(gemworks("list", "--json").stdout)["models"]
    assert not [row for row in listed if row["kind"] == "pulled"]
    hub.bytes_per_second = 0
    hub.requests.clear()
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    assert hub.sent_ranges("model.safetensors") == [f"bytes={kept}-"]
    assert (model_folder(home) / "model.safetensors").read_bytes() == weights


def test_ctrl_c_keeps_what_came_and_says_so(hub, published, home, environment, wait_for):
    hub.bytes_per_second = 2_000_000
    process = start_pull(environment, hub)
    wait_for(lambda: any(part.stat().st_size for part in parts(home)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert (out, err) == ("", "Stopped. What has been fetched is kept; the next pull goes on from there.\n")
    assert parts(home)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(gemworks, hub, published, home, weights, knows_ranges):
    hub.break_after, hub.breaks, hub.knows_ranges = 1_500_000, 2, knows_ranges
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    assert (model_folder(home) / "model.safetensors").read_bytes() == weights
    starts = [int(sent.strip("bytes=-") or 0) for sent in hub.sent_ranges("model.safetensors")]
    assert len(starts) == 3 and 0 == starts[0] < starts[1]
    assert (starts[1] < starts[2]) or not knows_ranges


def test_spoiled_content_is_refused_and_thrown_away(gemworks, hub, published, home):
    hub.spoil = b"spoiled"
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 2
    assert "google/gemma-3-1b-it: model.safetensors must have sha256 " in done.stderr
    assert "thrown away; pull again" in done.stderr
    assert not model_folder(home).exists() and not parts(home)


def test_a_part_that_a_crash_damaged_does_not_become_a_model(gemworks, hub, published, home, environment, wait_for):
    hub.bytes_per_second = 2_000_000
    process = start_pull(environment, hub)
    wait_for(lambda: any(part.stat().st_size >= 1_000_000 for part in parts(home)))
    process.kill()
    process.communicate()
    [part] = parts(home)
    with part.open("r+b") as stream:
        stream.write(b"\0" * 512)
    hub.bytes_per_second = 0
    assert gemworks("pull", "gemma3:1b", "--endpoint", hub.url).returncode == 2
    assert gemworks("pull", "gemma3:1b", "--endpoint", hub.url).returncode == 0


def test_two_pulls_at_once_fetch_once(hub, published, home, weights, environment):
    hub.bytes_per_second = 2_000_000
    both = [start_pull(environment, hub) for _ in range(2)]
    texts = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert (model_folder(home) / "model.safetensors").read_bytes() == weights
    assert len(hub.sent_ranges("model.safetensors")) == 1
    outs = sorted(out for out, _ in texts)
    assert outs[1] == "gemma3:1b is up to date." + "\n" or "is ready" in outs[1]
    assert any(err == f"another pull of {REPO} is running; waiting for it\n" for _, err in texts)


def test_a_gated_model_tells_what_to_click(gemworks, hub, published, home):
    published.gated = True
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: {REPO} is gated: its owner asks you to accept a license first.\n"
        f'  1. Open {hub.url}/{REPO}, sign in and click "Acknowledge license".\n'
        f"  2. Make a token with read access at {hub.url}/settings/tokens.\n"
        "  3. Set it: export HF_TOKEN=hf_..., then run: gemworks pull gemma3:1b\n"
    )
    assert not model_folder(home).exists()


def test_a_token_without_access_is_told_apart_and_never_shown(gemworks, hub, published):
    published.gated = True
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url, HF_TOKEN="hf_mysecret")
    assert done.returncode == 2
    assert "is gated, and the account of the token in HF_TOKEN has no access to it yet." in done.stderr
    assert 'click "Acknowledge license"' in done.stderr
    assert "mysecret" not in done.stdout + done.stderr


def test_a_token_with_access_fetches_a_gated_model(gemworks, hub, published):
    published.gated = True
    assert gemworks("pull", "gemma3:1b", "--endpoint", hub.url, HF_TOKEN="good").returncode == 0


def test_a_missing_repository_names_the_nearest(gemworks, hub):
    done = gemworks("pull", "google/gemma-3-1b-itt", "--endpoint", hub.url)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: {hub.url} has no repository google/gemma-3-1b-itt, or it is private. "
        'Did you mean "google/gemma-3-1b-it"?\n'
        "Check the name; for a private repository set HF_TOKEN to a token that may read it.\n"
    )


def test_an_unknown_name_asks_nobody(gemworks, hub):
    done = gemworks("pull", "gemma3:1bb", "--endpoint", hub.url)
    assert done.returncode == 2
    assert done.stderr.startswith('Error: no model named "gemma3:1bb". Did you mean "gemma3:1b"?\nKnown: gemma3:270m')
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached(gemworks, home):
    done = gemworks("pull", "gemma3:1b", "--endpoint", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: http://127.0.0.1:9 cannot be reached: ")
    assert "Check the network and proxy, or name another hub with --endpoint." in done.stderr
    assert "Traceback" not in done.stderr and not model_folder(home).exists()


def test_a_hub_in_trouble(gemworks, hub, published):
    hub.status = 400
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: {hub.url} answered 400 for {REPO}. Try again later; what has been fetched is kept.\n"
    )


def test_an_endpoint_that_is_no_address(gemworks):
    done = gemworks("pull", "gemma3:1b", "--endpoint", "localhost:8080")
    assert done.returncode == 2
    assert done.stderr == (
        'Error: the endpoint must be an address that begins with http:// or https://, got "localhost:8080".\n'
    )


GGUFS = {"g-Q8_0.gguf": b"8" * 100, "g-Q4_0.gguf": b"4" * 50, "g-IQ3_XS.gguf": b"3", "mmproj-f16.gguf": b"m"}


def test_of_several_gguf_files_the_format_chooses(gemworks, hub, home):
    hub.add("someone/g-GGUF", GGUFS)
    done = gemworks("pull", "hf.co/someone/g-GGUF", "--endpoint", hub.url)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: someone/g-GGUF has 2 GGUF files that load:\n  g-Q4_0.gguf\n  g-Q8_0.gguf\n"
        "Name the one to fetch, as in: gemworks pull someone/g-GGUF:Q4_0\n"
    )
    assert gemworks("pull", "hf.co/someone/g-GGUF:q8_0", "--endpoint", hub.url).returncode == 0
    folder = home / "models" / "someone" / "g-GGUF"
    assert sorted(path.name for path in folder.iterdir()) == ["g-Q8_0.gguf", "manifest.json"]
    assert gemworks("pull", "someone/g-GGUF:Q4_0", "--endpoint", hub.url).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["g-Q4_0.gguf", "g-Q8_0.gguf", "manifest.json"]
    ambiguous = gemworks("show", "someone/g-GGUF")
    assert "has 2 GGUF files here" in ambiguous.stderr and "as in someone/g-GGUF:Q4_0" in ambiguous.stderr


def test_formats_that_do_not_load_are_refused_before_anything_is_fetched(gemworks, hub, home):
    hub.add("someone/g-GGUF", {"g-IQ3_XS.gguf": b"3", "g-Q2_K.gguf": b"2"})
    done = gemworks("pull", "someone/g-GGUF", "--endpoint", hub.url)
    assert done.returncode == 2
    assert "has GGUF files in IQ3_XS, Q2_K only, which this release does not read." in done.stderr
    assert not (home / "models" / ".partial").exists()


def test_a_terminal_is_asked_which_file(terminal, hub, home):
    hub.add("someone/g-GGUF", GGUFS)
    screen = terminal("pull", "someone/g-GGUF", "--endpoint", hub.url)
    screen.expect("1  g-Q4_0.gguf")
    screen.expect("Which one? [1] ")
    screen.enter("7")
    screen.expect("Which one? [1] ")
    screen.enter("2")
    screen.expect("someone/g-GGUF is ready")
    assert screen.wait() == 0
    assert (home / "models" / "someone" / "g-GGUF" / "g-Q8_0.gguf").exists()


def test_no_permission_is_one_message(gemworks, hub, published, home):
    home.mkdir()
    (home / "models").write_text("a file where a folder is needed")
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr and "GEMWORKS_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_before_anything_is_fetched(gemworks, hub, published, small_disk):
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url, GEMWORKS_HOME=str(small_disk))
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {REPO} needs 3,000,0")
    assert f"more bytes, and the disk of {small_disk}/models/.partial/{REPO} has 2,09" in done.stderr
    assert "set GEMWORKS_HOME to a folder on another disk" in done.stderr
    assert hub.sent_ranges("model.safetensors") == []


def test_a_disk_that_fills_up_keeps_what_came(gemworks, hub, published, small_disk, environment, wait_for):
    hub.bytes_per_second = 1_000_000
    published.files["model.safetensors"] = published.files["model.safetensors"][:1_900_000]
    process = start_pull(environment | {"GEMWORKS_HOME": str(small_disk)}, hub)
    folder = small_disk / "models" / ".partial" / REPO
    wait_for(lambda: any(part.stat().st_size for part in folder.glob(".model*.part")))
    (small_disk / "other").write_bytes(b"x" * 1_000_000)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == (
        f"Error: the disk of {small_disk} is full. Free some room, or set GEMWORKS_HOME to a folder on another disk.\n"
        "What has been fetched is kept; pull again to go on.\n"
    )
    (small_disk / "other").unlink()
    hub.bytes_per_second = 0
    done = gemworks("pull", "gemma3:1b", "--endpoint", hub.url, GEMWORKS_HOME=str(small_disk))
    assert done.returncode == 0, done.stderr
    model = small_disk / "models" / REPO / "model.safetensors"
    assert model.read_bytes() == published.files["model.safetensors"]
