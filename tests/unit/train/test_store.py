"""A teacher's draws on disk: the same loss as online, bound to its data, continued after a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nano_runs import RandomRows, nano_recipe

from gemworks.errors import ConfigError
from gemworks.train.distill import Distill
from gemworks.train.forward import head_rows, hidden, model_of
from gemworks.train.state import random_params
from gemworks.train.store import TaughtSource, TeacherStore, write_store


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A source, a teacher, and stores of all schemes for two steps."""
    recipe = nano_recipe(rows=2, tokens=16)
    teacher = model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, 5).items()}, recipe.model)
    source, folder = RandomRows(recipe), tmp_path_factory.mktemp("stores")
    return source, teacher, folder


def write(taught, name: str, steps: int, scheme: str = "ht", seed: int = 1) -> TeacherStore:
    source, teacher, folder = taught
    write_store(
        folder / name, source, teacher, Distill(scheme=scheme, draws=64), steps=steps, seed=seed, teacher_digest="t"
    )
    return TeacherStore(folder / name)


@pytest.mark.exhaustive
def test_targets_of_all_schemes_average_to_the_teacher(taught):
    """Against p itself: counts are as far from it as 64 draws must be, sqrt((1 - sum p^2) / 64); ht is nearer."""
    source, teacher, _ = taught
    rows = source.batch(0)
    p = np.asarray(jax.jit(lambda m: jax.nn.softmax(hidden(m, rows) @ head_rows(m).T))(teacher))
    ht, counts = (TaughtSource(source, write(taught, scheme, 2, scheme)).batch(0) for scheme in ("ht", "counts"))
    for got, near, far in ((ht, 0.5, 0.9), (counts, 0.93, 1.07)):
        wanted = rows.loss_mask_BT > 0
        np.testing.assert_allclose(got.taught_BTC.sum(-1)[wanted], 1, rtol=1e-5)
        assert (got.taught_BTC.sum(-1)[~wanted] == 0).all(), "nothing is stored where nothing is learned"
        dense = np.zeros(p.shape)
        b, t = np.indices(wanted.shape)
        np.add.at(dense, (b[..., None], t[..., None], got.drawn_BTC), got.taught_BTC)
        distance = ((dense - p) ** 2).sum(-1)[wanted].mean()
        must = ((1 - (p**2).sum(-1)) / 64)[wanted].mean()
        assert near < distance / must < far
    np.testing.assert_array_equal(np.unique(np.rint(counts.taught_BTC * 64) - counts.taught_BTC * 64), 0)


@pytest.mark.exhaustive
def test_killed_writer_continues_to_the_same_bytes(taught):
    whole = write(taught, "whole", 2)
    write(taught, "cut", 1)
    cut = taught[2] / "cut"
    with (cut / "draws.bin").open("ab") as data, (cut / "index.bin").open("ab") as index:
        data.write(b"half a record")
        index.write(b"\x01\x02\x03")
    write(taught, "cut", 2)
    for name in ("draws.bin", "index.bin", "header.json"):
        assert (cut / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.exhaustive
def test_store_of_other_data_or_settings_is_refused(taught):
    source, _, _ = taught
    store = write(taught, "whole", 2)
    with pytest.raises(ConfigError, match="must be of the data of the run, and its packing is another"):
        TaughtSource(RandomRows(source.recipe, digest="another mixture"), store)
    with pytest.raises(ConfigError, match="row 1 of the run must have the ids that the teacher saw"):
        store.row(1, source.batch(0).ids_BT[0])
    with pytest.raises(ConfigError, match=r"holds the draws of 4 rows, and the run wants row 5"):
        TaughtSource(source, store).batch(2)
    with pytest.raises(ConfigError, match="seed   1 -> 2"):
        write(taught, "whole", 2, seed=2)
