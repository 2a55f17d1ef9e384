"""Threefry against its authors' known answers and numbers that JAX printed."""

import numpy as np
import pytest

from ih_interp import _jax_random as jax_random
from ih_interp.tasks.sampling import label_split
from ih_interp.toy import NAMES, ToyConfig, draw_vectors

TRUNCATED_SD = 0.87962566103423978  # of a normal cut at two sigma, as JAX writes it


# Random123's `kat_vectors`, threefry2x32 with 20 rounds: counter, key, answer.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_the_cipher(counter, key, answer):
    left, right = np.array(counter, dtype=np.uint32)[:, None]
    words = jax_random._encipher(np.array(key, dtype=np.uint32), left, right)
    assert [int(word[0]) for word in words] == list(answer)


def test_split_as_jax_documents_it():
    """`jax.random.split(jax.random.PRNGKey(0))` of JAX's documentation."""
    first, second = jax_random.split(jax_random.key(0))
    assert first.tolist() == [4146024105, 967050713]
    assert second.tolist() == [2718843009, 1272950319]


def test_normal_as_jax_documents_it():
    """`jax.random.normal(jax.random.PRNGKey(0), (10,))` of JAX's quickstart."""
    printed = [-0.3721109, 0.26423115, -0.18252768, -0.7368197, -0.44030377]
    printed += [-0.1521442, -0.67135346, -0.5908641, 0.73168886, 0.5673026]
    draws = jax_random.normal(jax_random.key(0), (10,))
    assert draws.dtype == np.float32
    np.testing.assert_allclose(
        draws, printed, rtol=1e-6
    )  # a few units in the last place of float32


@pytest.mark.parametrize(
    ("n_labels", "n_train", "held_out"),
    [
        (5, 8, [(1, 3), (0, 2)]),
        (10, 36, [(2, 6), (1, 2), (0, 7), (1, 4), (2, 8), (6, 9), (2, 5), (0, 9), (2, 4)]),
        (15, 84, None),
    ],
)
def test_label_splits_of_the_published_code(n_labels, n_train, held_out):
    train, test = label_split(n_labels, 2, 0.2, 20)
    assert len(train) == n_train
    assert len(test) == n_labels * (n_labels - 1) // 2 - n_train
    if held_out is not None:
        assert [tuple(pair) for pair in test.tolist()] == held_out


def test_training_pairs_of_the_published_code():
    train, _ = label_split(5, 2, 0.2, 20)
    printed = [(1, 2), (2, 3), (0, 4), (0, 3), (0, 1), (2, 4), (1, 4), (3, 4)]
    assert [tuple(pair) for pair in train.tolist()] == printed


def test_toy_vectors_of_the_published_code():
    norms = [np.linalg.norm(vectors[n]) for vectors in draw_vectors(ToyConfig()) for n in NAMES]
    assert norms == pytest.approx([4.487, 3.235, 4.087, 4.757, 3.679, 5.291], abs=0.0005)


def test_initial_weights_of_the_published_code(shared):
    """A checkpoint at iteration 0, its label table scaled by 40 and its qkv weights by 3."""
    arrays = []
    path = shared / "reference" / "icl_dynamics" / "random" / "checkpoint.eqx"
    with path.open("rb") as file:
        while file.tell() < path.stat().st_size:
            arrays.append(np.lib.format.read_array(file))
    weights = iter([array for array in arrays if array.ndim == 2])
    exemplar, label, transformer, unembed = jax_random.split(jax_random.key(5), 4)

    def drawn(key, scale: float) -> np.ndarray:
        """The next weight of the checkpoint, drawn again."""
        found = next(weights)
        expected = scale * jax_random.truncated_normal(jax_random.split(key)[0], found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        return found

    lecun = 1 / TRUNCATED_SD
    assert drawn(exemplar, lecun / np.sqrt(32)).shape == (64, 32)
    assert drawn(label, 40 * 0.02).shape == (64, 5)
    for block in jax_random.split(transformer, 5)[2:4]:
        qkv, out = jax_random.split(jax_random.split(block)[0])
        assert drawn(qkv, 3 * lecun / 8).shape == (192, 64)
        assert drawn(out, lecun / 8).shape == (64, 64)
    assert drawn(unembed, lecun / 8).shape == (5, 64)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100, 2_000])
def test_permutation_is_one(n):
    order = jax_random.permutation(jax_random.key(3), n)
    assert sorted(order.tolist()) == list(range(n))
    if n > 2:
        assert order.tolist() != list(range(n))


def test_every_order_is_as_likely():
    orders = [
        tuple(jax_random.permutation(key, 3)) for key in jax_random.split(jax_random.key(0), 600)
    ]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # chi-squared of 5 degrees, one in a thousand


def test_truncated_normal_has_its_moments():
    draws = jax_random.truncated_normal(jax_random.key(1), (200, 500))
    assert draws.dtype == np.float32
    assert np.abs(draws).max() < 2
    error = TRUNCATED_SD / np.sqrt(draws.size)
    assert abs(draws.mean()) < 4 * error
    assert draws.std() == pytest.approx(TRUNCATED_SD, abs=4 * error)


def test_draws_depend_on_the_key_alone():
    key = jax_random.key(7)
    np.testing.assert_array_equal(
        jax_random.normal(key, (6,)), jax_random.normal(key, (2, 3)).ravel()
    )
    assert not (jax_random.normal(key, (6,)) == jax_random.normal(jax_random.key(8), (6,))).any()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_refuses_seeds_that_do_not_fit(seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        jax_random.key(seed)
