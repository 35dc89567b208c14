"""Whether the CPU kernels can be used, and what is said when they cannot."""

import dataclasses

import jax
import pytest

from gemworks import env, machine
from gemworks.errors import BackendError, ConfigError
from gemworks.ops import native, select

library = pytest.importorskip("gemworks.ops.cpu.library")


@pytest.fixture
def found() -> native.NativeLibrary:
    built = native.native_library()
    if built is None:
        pytest.skip(f"no native library: {native.why_missing()}")
    return built


@pytest.fixture
def why(monkeypatch):
    """why_unavailable, asked anew: its answer is kept for the life of a process."""
    return library.why_unavailable.__wrapped__


def test_a_machine_with_the_library_uses_the_kernels(found):
    assert library.why_unavailable() is None
    assert library.isa() in library.ISAS
    assert select.choose("linear").reason == f"kernels for {library.isa()}"
    assert select.packs_weights()


def test_without_the_library_every_op_is_xlas_and_says_why(monkeypatch):
    monkeypatch.setattr(native, "native_library", lambda: None)
    monkeypatch.setattr(native, "why_missing", lambda: "no working C++ compiler was found")
    monkeypatch.setattr(library, "why_unavailable", library.why_unavailable.__wrapped__)
    assert select.choose("linear") == select.BackendChoice(
        "linear", "xla", "no kernels: no working C++ compiler was found"
    )
    assert select.available() == ("xla",)
    assert not select.packs_weights()
    with pytest.raises(BackendError, match='no backend "cpu" here: no working C'), select.force("*", "cpu"):
        pass


def test_an_older_jaxlib_than_it_was_built_for_is_not_given_the_kernels(found, why, monkeypatch):
    """Registering them would stop jax's whole CPU backend."""
    newer = dataclasses.replace(found, jaxlib="99.0.0")
    monkeypatch.setattr(native, "native_library", lambda: newer)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", pytest.fail)
    assert why().startswith("they were built for jaxlib 99.0.0 or newer and this is ")


def test_another_device_is_not_given_the_kernels(found, why, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    assert why() == "jax computes on cuda here"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "4096"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, text):
    monkeypatch.setenv("GEMWORKS_THREADS", text)
    with pytest.raises(ConfigError, match=f'GEMWORKS_THREADS must be a number from 1 to 1024, got "{text}"'):
        env.threads()


def test_threads_follow_the_affinity_mask_and_the_quota(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    for quota, threads in ((None, 8), (16.0, 8), (2.0, 2), (1.5, 2), (0.2, 1)):
        monkeypatch.setattr(machine, "_cgroup_cores", lambda quota=quota: quota)
        assert machine.threads() == threads


@pytest.mark.parametrize(("version", "numbers"), [("0.10.2", (0, 10, 2)), ("0.11.0.dev3+cpu", (0, 11, 0)), ("1", (1,))])
def test_versions_compare_by_their_numbers(version, numbers):
    assert library._release(version) == numbers
