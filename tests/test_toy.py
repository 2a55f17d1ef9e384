"""The three-vector model against theory, symmetry, a literal oracle, and the paper's numbers."""

import numpy as np
import pandas as pd
import pytest
import torch

from ih_interp import toy
from ih_interp.toy import ToyConfig

BOTH = {"b": None, "c": None}
SMALL = ToyConfig(sizes=(3, 4, 5), seed=2, learning_rate=0.05, iterations=40)


def tensors(vectors: toy.Vectors) -> list[torch.Tensor]:
    return [torch.tensor(vectors[name], requires_grad=True) for name in toy.NAMES]


def literal_loss(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor):
    """0.5 mean (T* - a b c)^2, entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    for i, j, k in np.ndindex(*target.shape):
        total = total + (target[i, j, k] - a[i] * b[j] * c[k]) ** 2
    return 0.5 * total / target.numel()


def literal_curves(config: ToyConfig) -> pd.DataFrame:
    """The whole descent with an explicit tensor and autograd."""
    true, initial = (tensors(vectors) for vectors in toy.draw_vectors(config))
    target = (true[0][:, None, None] * true[1][None, :, None] * true[2]).detach()
    held = [config.clamp.get(name, 0) for name in toy.NAMES]
    held = [size if n is None else n for n, size in zip(held, config.sizes, strict=True)]
    vectors, rows = initial, []
    for iteration in range(config.iterations):
        with torch.no_grad():
            for vector, truth, n in zip(vectors, true, held, strict=True):
                vector[:n] = truth[:n]
        a, b, c = vectors
        loss = literal_loss(target, a, b, c)
        perfected = [literal_loss(target, sign * a, true[1], true[2]).item() for sign in (1, -1)]
        cosine = torch.nn.functional.cosine_similarity(a, true[0], dim=0).item()
        rows.append((iteration, loss.item(), 1 - cosine**2, min(perfected)))
        gradients = torch.autograd.grad(loss, vectors)
        vectors = [
            (v - config.learning_rate * g).detach().requires_grad_()
            for v, g in zip(vectors, gradients, strict=True)
        ]
    return pd.DataFrame(rows, columns=["iteration", "loss", "progress_1", "progress_2"])


@pytest.mark.parametrize("clamp", [{}, {"b": None}, {"a": 2, "c": 3}])
def test_descent_is_the_literal_one(clamp):
    config = SMALL.model_copy(update={"clamp": clamp, "iterations": 8})
    pd.testing.assert_frame_equal(
        toy.train_toy(config), literal_curves(config), rtol=1e-10, atol=1e-13
    )


def test_gradients_are_autograds():
    true, vectors = toy.draw_vectors(SMALL)
    a, b, c = tensors(true)
    target = (a[:, None, None] * b[None, :, None] * c).detach()
    free = tensors(vectors)
    expected = torch.autograd.grad(literal_loss(target, *free), free)
    for name, gradient in zip(toy.NAMES, expected, strict=True):
        np.testing.assert_allclose(toy._gradients(vectors, true)[name], gradient, rtol=1e-12)


@pytest.mark.parametrize("clamped", ["bc", "ac", "ab"])
def test_a_lone_vector_decays_exponentially(clamped):
    config = ToyConfig(clamp=dict.fromkeys(clamped), iterations=200)
    losses = toy.train_toy(config).loss
    # After 200 steps of rounding, relative to losses that have fallen 5,000 to 80 million times.
    np.testing.assert_allclose(losses, toy.lone_vector_losses(config), rtol=1e-11)
    assert losses.iloc[-1] < 2e-4 * losses.iloc[0]


def test_a_lone_vector_decays_at_the_paper_rate():
    losses = toy.lone_vector_losses(ToyConfig(clamp=BOTH))
    true, _ = toy.draw_vectors(ToyConfig())
    rate = (true["b"] @ true["b"]) * (true["c"] @ true["c"]) / 8_000
    np.testing.assert_allclose(losses[1:] / losses[:-1], (1 - rate) ** 2, rtol=1e-12)
    assert losses[1] / losses[0] == pytest.approx(0.957, abs=0.0005)


def test_a_clamp_of_every_entry_is_a_whole_clamp():
    spelt = ToyConfig(clamp={"b": 20, "c": 20}, iterations=30)
    pd.testing.assert_frame_equal(
        toy.train_toy(spelt), toy.train_toy(ToyConfig(clamp=BOTH, iterations=30))
    )
    np.testing.assert_array_equal(
        toy.lone_vector_losses(spelt), toy.lone_vector_losses(ToyConfig(clamp=BOTH, iterations=30))
    )


def test_with_b_and_c_clamped_progress_2_is_the_loss():
    table = toy.train_toy(ToyConfig(clamp=BOTH, iterations=100))
    later = table[table.iteration > 0]  # at first -a is nearer to a* than a
    np.testing.assert_allclose(later.progress_2, later.loss, rtol=1e-9)
    assert table.progress_2[0] < table.loss[0]


def test_plateau_is_the_loss_of_a_product_of_zero():
    true, _ = toy.draw_vectors(ToyConfig())
    target = np.einsum("i,j,k->ijk", *true.values())
    assert toy.plateau_loss(ToyConfig()) == pytest.approx(0.5 * np.mean(target**2), rel=1e-12)
    table = toy.train_toy()
    assert (table.loss[100:500] / toy.plateau_loss(ToyConfig()) - 1).abs().max() < 0.01


# Every number of the paper's section on the toy model, to the digits printed.
PAPER = [
    ({}, "loss", {0: "0.756", 50: "0.227", 200: "0.2199", 500: "0.2183", 600: "0.2139"}),
    ({}, "loss", {800: "0.020", 999: "0.00001"}),
    ({}, "progress_1", {5: "0.9999", 200: "0.989", 500: "0.925", 600: "0.825", 800: "0.025"}),
    ({}, "progress_2", {100: "0.298", 500: "0.238", 800: "0.0067"}),
    ({"c": None}, "loss", {0: "0.539", 50: "0.217", 100: "0.148", 150: "0.034", 200: "0.0038"}),
    (BOTH, "loss", {0: "0.469", 20: "0.194", 50: "0.051", 100: "0.0057"}),
    (BOTH, "progress_1", {50: "0.217", 100: "0.017"}),
]


@pytest.mark.parametrize(("clamp", "measure", "printed"), PAPER)
def test_numbers_of_the_published_code(clamp, measure, printed):
    values = toy.train_toy(ToyConfig(clamp=clamp))[measure]
    for iteration, digits in printed.items():
        half_a_unit = 0.5 * 10.0 ** -len(digits.split(".")[1])
        assert values[iteration] == pytest.approx(float(digits), abs=half_a_unit), iteration


@pytest.mark.parametrize(
    ("clamped", "iteration"),
    [("", 761), ("a", 126), ("b", 128), ("c", 139), ("ab", 44), ("ac", 27), ("bc", 53)],
)
def test_iterations_to_a_tenth_of_the_first_loss(clamped, iteration):
    losses = toy.train_toy(ToyConfig(clamp=dict.fromkeys(clamped))).loss
    assert (losses < 0.1 * losses[0]).idxmax() == iteration


def test_realised_cosines():
    true, initial = toy.draw_vectors(ToyConfig())
    for name, cosine in zip(toy.NAMES, (-0.004, -0.232, 0.254), strict=True):
        lengths = np.linalg.norm(true[name]) * np.linalg.norm(initial[name])
        assert true[name] @ initial[name] / lengths == pytest.approx(cosine, abs=0.0005)


def trained_from(monkeypatch, true: toy.Vectors, initial: toy.Vectors, config: ToyConfig):
    monkeypatch.setattr(toy, "draw_vectors", lambda _: (true, initial))
    return toy.train_toy(config)


def test_names_of_the_vectors_do_not_matter(monkeypatch):
    """Swapping two factors, their sizes and their clamps swaps nothing in the loss."""
    config = SMALL.model_copy(update={"clamp": {"b": 2}})
    true, initial = toy.draw_vectors(config)
    expected = toy.train_toy(config)

    def swapped(vectors: toy.Vectors, x: str, y: str) -> toy.Vectors:
        return {**vectors, x: vectors[y], y: vectors[x]}

    b_and_c = SMALL.model_copy(update={"sizes": (3, 5, 4), "clamp": {"c": 2}})
    table = trained_from(monkeypatch, swapped(true, "b", "c"), swapped(initial, "b", "c"), b_and_c)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-12)
    a_and_b = SMALL.model_copy(update={"sizes": (4, 3, 5), "clamp": {"a": 2}})
    table = trained_from(monkeypatch, swapped(true, "a", "b"), swapped(initial, "a", "b"), a_and_b)
    np.testing.assert_allclose(table.loss, expected.loss, rtol=1e-12)
    assert table.progress_1[0] != expected.progress_1[0]  # these are about a, now another vector


def test_order_and_signs_of_entries_do_not_matter(monkeypatch):
    true, initial = toy.draw_vectors(SMALL)
    expected = toy.train_toy(SMALL)
    reverse = [{**vectors, "a": -vectors["a"][::-1]} for vectors in (true, initial)]
    pd.testing.assert_frame_equal(trained_from(monkeypatch, *reverse, SMALL), expected, rtol=1e-10)


def test_signs_shared_by_two_vectors_do_not_matter(monkeypatch):
    """(-a)(-b) c is a b c: the reason that progress measure 2 takes the better sign."""
    true, initial = toy.draw_vectors(SMALL)
    expected = toy.train_toy(SMALL)
    flipped = {**initial, "a": -initial["a"], "b": -initial["b"]}
    pd.testing.assert_frame_equal(
        trained_from(monkeypatch, true, flipped, SMALL), expected, rtol=1e-10
    )


def test_partial_clamps_hold_the_first_entries():
    config = SMALL.model_copy(update={"clamp": {"b": 3}})
    true, initial = toy.draw_vectors(config)
    states = list(toy.descend(config))
    assert len(states) == config.iterations
    for state in states:
        np.testing.assert_array_equal(state["b"][:3], true["b"][:3])
    np.testing.assert_array_equal(states[0]["b"][3:], initial["b"][3:])
    np.testing.assert_array_equal(states[0]["a"], initial["a"])
    assert states[-1]["b"][3] != initial["b"][3]
    assert (states[-1]["a"] != initial["a"]).all()


def test_columns_and_determinism():
    table = toy.train_toy(SMALL)
    assert list(table) == ["iteration", "loss", "progress_1", "progress_2"]
    assert list(table.iteration) == list(range(40))
    pd.testing.assert_frame_equal(table, toy.train_toy(SMALL), check_exact=True)


def test_configuration_is_data():
    config = ToyConfig(clamp={"b": 3, "c": None}, seed=4)
    assert ToyConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clamp": {"d": None}}, r"clamp\.d.*: expected 'a', 'b' or 'c'"),
        ({"clamp": {"a": 21}}, "=21: expected at most 20"),
        ({"clamp": {"a": 0}}, r"clamp\.a=0: expected at least 1"),
        ({"sizes": (4, 0, 4)}, r"sizes\.1=0: expected at least 1"),
        ({"learning_rate": 0}, "learning_rate=0: expected above 0"),
        ({"clamps": {"a": None}}, "did you mean clamp"),
    ],
)
def test_refuses_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        ToyConfig(**fields)


def test_refuses_to_diverge():
    with pytest.raises(ValueError, match="learning_rate=100"):
        toy.train_toy(ToyConfig(learning_rate=100))


@pytest.mark.parametrize("clamp", [{}, {"c": None}, dict.fromkeys("abc"), {"b": 5, "c": None}])
def test_refuses_a_closed_form_there_is_not(clamp):
    with pytest.raises(ValueError, match="clamp="):
        toy.lone_vector_losses(ToyConfig(clamp=clamp))
