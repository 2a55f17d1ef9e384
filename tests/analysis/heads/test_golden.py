"""The published code's own numbers: logits, patterns, gradients, losses; a trained network."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformer_lens import HookedTransformer

import ih_interp as ih
from ih_interp.batch import Batch
from ih_interp.model import ModelConfig, build_model, trained_parameters

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "icl_dynamics"
CASES_FILE = REFERENCE / "random" / "cases.json"
CASES: dict[str, Any] = json.loads(CASES_FILE.read_text()) if CASES_FILE.is_file() else {}
PATTERN_OF_ANOTHER_PASS = ("copy", "layer_one_and_copy")

every_case = pytest.mark.parametrize("case", CASES)  # none without ../shared: skipped


# A circuit built by hand


class Circuit(NamedTuple):
    model: HookedTransformer
    batch: Batch


@pytest.fixture
def circuit() -> Circuit:
    """An induction head in twelve dimensions: three classes, three labels, and no position matters.

    Dimensions 0 to 2 hold the exemplar, 3 to 5 the label, 6 to 8 the exemplar that layer 0 copies
    from the token before. The head of layer 1 scores ln 6 where its key's copied exemplar is the
    query, 0 elsewhere, and writes the labels that it finds to the logits.
    """
    task = ih.FewShotTask(
        ih.Exemplars(torch.eye(3)[:, None]),
        ih.TaskConfig(n_train_classes=3, n_labels=3, held_out_labels=0.0),
    )
    shape = ModelConfig(
        d_model=12,
        n_heads=1,
        d_head=4,
        normalization_type=None,
        positional_embedding_type="standard",
    )
    model = build_model(task, shape)
    exemplar, label, copied = (torch.eye(12)[start : start + 3] for start in (0, 3, 6))
    to_head = torch.eye(4)[:3]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_in.copy_(exemplar)
        model.embed.W_label.copy_(label)
        below, above = (block.attn for block in model.blocks)
        below.W_V[0] = exemplar.T @ to_head
        below.W_O[0] = to_head.T @ copied
        above.W_Q[0] = exemplar.T @ to_head * 2 * math.log(6)  # scores are halved: sqrt(d_head)
        above.W_K[0] = copied.T @ to_head
        above.W_V[0] = label.T @ to_head
        above.W_O[0] = to_head.T @ label
        model.unembed.W_U.copy_(label.T)
    # x0 l0 x1 l1 x1 and x0 l0 x1 l1 x0
    classes, labels = tensor([[0, 1, 1], [0, 1, 0]]), tensor([[0, 1, 1], [0, 1, 0]])
    return Circuit(model, task.batch(classes, torch.zeros_like(classes), labels))


PREVIOUS = {"kind": "previous_token_attention", "heads": ["L0H0"]}
BY_HAND: dict[str, tuple[list[dict[str, Any]], list[list[float]]]] = {
    # Query x1: odds 6 at l1, 1 at the other four. Query x0: 6 at l0, and at the first position too,
    # which has nothing before it and copied itself; 1 at the other three.
    "previous token": ([PREVIOUS], [[1 / 10, 6 / 10, 0], [6 / 15, 1 / 15, 0]]),
    "labels only": (
        [PREVIOUS, {"kind": "attend_labels_only", "heads": ["L1H0"]}],
        [[1 / 7, 6 / 7, 0], [6 / 7, 1 / 7, 0]],
    ),
    # Odds of 36 instead of 6.
    "half the temperature": (
        [PREVIOUS, {"kind": "attention_temperature", "heads": ["L1H0"], "temperature": 0.5}],
        [[1 / 40, 36 / 40, 0], [36 / 75, 1 / 75, 0]],
    ),
    # The query may not look at l1, the token before it: 1 at three others and itself remain.
    "previous token forbidden above": (
        [PREVIOUS, {"kind": "forbid_previous_token", "heads": ["L1H0"]}],
        [[1 / 4, 0, 0], [6 / 14, 0, 0]],
    ),
    "induction": (
        [{"kind": "induction_attention", "heads": ["L1H0"], "strength": 0.9}],
        [[0.1, 0.9, 0], [0.9, 0.1, 0]],
    ),
    # Cosines 1 and 0: softmax of (2, 0) at temperature one half.
    "match": (
        [{"kind": "match_attention", "heads": ["L1H0"], "temperature": 0.5}],
        [
            [1 / (1 + math.e**2), 1 / (1 + math.e**-2), 0],
            [1 / (1 + math.e**-2), 1 / (1 + math.e**2), 0],
        ],
    ),
    "copy": (
        [PREVIOUS, {"kind": "copy_from_attention", "head": "L1H0"}],
        [[0, math.log(6), -1e9], [math.log(6), 0, -1e9]],
    ),
    "nothing found": ([PREVIOUS, {"kind": "ablate_heads", "heads": ["L1H0"]}], [[0.0, 0, 0]] * 2),
    # Nothing copied: even attention to five tokens.
    "nothing copied": ([{"kind": "ablate_heads", "heads": ["L0H0"]}], [[0.2, 0.2, 0]] * 2),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_circuit_built_by_hand(case, circuit):
    values, expected = BY_HAND[case]
    with ih.clamped(circuit.model, ih.clamps.parse(values), circuit.batch):
        logits = circuit.model(circuit.batch.tokens)[:, -1]
    assert_close(logits, tensor(expected))


# Random weights under every clamp


class Random(NamedTuple):
    """The published code's inputs and outputs; arrays by case and name."""

    task: ih.FewShotTask
    batch: Batch
    training: list[Batch]
    arrays: dict[str, np.ndarray]

    def expected(self, case: str, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{case}/{name}"])

    def model(self) -> HookedTransformer:
        folder = CASES_FILE.parent
        return ih.load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", self.task)


@pytest.fixture(scope="module")
def random(shared: Path) -> Random:
    with np.load(shared / "reference/icl_dynamics/random/arrays.npz") as file:
        arrays = dict(file)
    exemplars = ih.Exemplars(torch.from_numpy(arrays["features"]))
    task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=12))
    parts = ("class_index", "exemplar_index", "label")
    batch = task.batch(*(torch.from_numpy(arrays[part]).long() for part in parts))
    given = [torch.from_numpy(arrays[f"train_{part}"]).long() for part in parts]
    training = [task.batch(*step) for step in zip(*given, strict=True)]
    return Random(task, batch, training, arrays)


def test_all_26_cases_are_here(random):
    assert len(CASES) == 26
    assert {name.split("/")[0] for name in random.arrays if "/" in name} == set(CASES)


@every_case
def test_logits_and_patterns_of_the_published_code(case, random):
    model, given = random.model(), ih.clamps.parse(CASES[case]["clamps"])
    with ih.clamped(model, given, random.batch):
        logits, cache = model.run_with_cache(random.batch.tokens)
    assert_close(logits[:, -1], random.expected(case, "logits"), rtol=0, atol=1e-4)
    if case not in PATTERN_OF_ANOTHER_PASS:
        pattern = torch.stack([cache["pattern", layer] for layer in range(2)], dim=1)
        assert_close(pattern, random.expected(case, "pattern"), rtol=0, atol=1e-4)


@every_case
def test_training_of_the_published_code(case, random):
    model, given = random.model(), ih.clamps.parse(CASES[case]["clamps"])
    trained = list(trained_parameters(model).values())
    adam = torch.optim.Adam(trained, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    losses: list[float] = []
    for batch in random.training:
        with ih.clamped(model, given, batch):
            loss = cross_entropy(model(batch.tokens)[:, -1], batch.target)
        adam.zero_grad()
        loss.backward()
        if not losses:
            squares = [p.grad.square().sum() for p in trained if p.grad is not None]
            norm = torch.stack(squares).sum().sqrt()
            expected = float(random.expected(case, "first_gradient_norm"))
            assert norm.item() == pytest.approx(expected, rel=1e-3)
        adam.step()
        losses.append(loss.item())
    assert_close(tensor(losses), random.expected(case, "losses").float(), rtol=1e-3, atol=0)
    with torch.no_grad(), ih.clamped(model, given, random.batch):
        logits = model(random.batch.tokens)[:, -1]
    assert_close(logits, random.expected(case, "logits_after_training"), rtol=0, atol=1e-3)


# The paper's main run, trained by the published code


class Trained(NamedTuple):
    model: HookedTransformer
    task: ih.FewShotTask
    batch: Batch
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def trained(shared: Path) -> Trained:
    folder = shared / "reference/icl_dynamics/trained"
    everything = ih.Exemplars.load(shared / "data/omniglot_features.h5")
    # Only the training classes are needed, and a small table of features is quick to project.
    exemplars = ih.Exemplars(everything.features[:50].clone())
    task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=50, n_labels=5))
    model = ih.load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", task)
    measured = json.loads((folder / "measured.json").read_text())
    return Trained(model, task, task.enumerate("train"), measured)


def test_label_pairs_are_split_as_the_published_code_split_them(trained, shared):
    splits = json.loads((shared / "reference/icl_dynamics/trained/splits.json").read_text())
    assert trained.task.train_label_sets.tolist() == splits["train_label_pairs"]
    assert trained.task.test_label_sets.tolist() == splits["test_label_pairs"]


@torch.no_grad()
def mean_patterns(model: HookedTransformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Over all sequences: the pattern, and the query's attention to the correct minus the other."""
    pattern, strength = torch.zeros(2, 8, 5, 5), torch.zeros(2, 8)
    for part in batch.split(4_096):
        _, cache = model.run_with_cache(part.tokens, names_filter=lambda n: n.endswith("pattern"))
        sign = part.correct.float() * 2 - 1
        for layer in range(2):
            found = cache["pattern", layer]
            pattern[layer] += found.sum(dim=0)
            strength[layer] += torch.einsum("bhp,bp->h", found[:, :, -1, [1, 3]], sign)
    return pattern / len(batch), strength / len(batch)


def test_attention_over_all_training_sequences(trained):
    assert len(trained.batch) == 78_400
    pattern, strength = mean_patterns(trained.model, trained.batch)
    to_previous = pattern.diagonal(offset=-1, dim1=-2, dim2=-1)  # rows 1 to 4
    for name, found in {
        "induction_strength": strength,
        "previous_token_attention_all_rows": to_previous.mean(dim=-1),
        "previous_token_attention_label_rows": to_previous[..., [0, 2]].mean(dim=-1),
    }.items():
        assert_close(found, tensor(trained.measured[name]), rtol=0, atol=1e-3)


def test_the_public_measure_of_induction_is_the_published_one(trained):
    strength = ih.induction_strength(trained.model, trained.batch)
    assert_close(strength, tensor(trained.measured["induction_strength"]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "head", [0, 1, *(pytest.param(head, marks=pytest.mark.slow) for head in range(2, 8))]
)
@pytest.mark.parametrize("which", ["only_head", "without_head"])
def test_accuracy_and_loss_with_heads_ablated(which, head, trained):
    rest = ih.clamps.keep_only((1, head), n_heads=8)
    ablate = ih.clamps.AblateHeads(heads=rest if which == "only_head" else [(1, head)])
    found = ih.evaluate(trained.model, trained.batch, [ablate], chunk=2_048).mean()
    for name in ("accuracy", "loss"):
        assert found[name] == pytest.approx(trained.measured[which][name][head], rel=0, abs=1e-3)
