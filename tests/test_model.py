"""The model against a literal forward pass, and its initial weights against the paper's."""

import copy

import numpy as np
import pytest
import torch
from oracles import literal_forward
from torch.func import functional_call, functionalize, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.interop.icl_dynamics import load_icl_dynamics
from ih_interp.model import (
    ATTENTION_BIASES,
    FewShotEmbed,
    ModelConfig,
    build_model,
    trained_parameters,
)
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig

VARIANTS = {
    "paper": {},
    "RMS": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None},
    "learned positions": {"positional_embedding_type": "standard"},
    "odd heads": {"positional_embedding_type": "standard", "d_head": 3, "n_heads": 5},
    "gelu": {"attn_only": False, "d_mlp": 10},
    "gelu by tanh": {"attn_only": False, "act_fn": "gelu_new"},
    "relu": {"attn_only": False, "act_fn": "relu"},
    "silu": {"attn_only": False, "act_fn": "silu", "normalization_type": "RMS", "d_mlp": 7},
    "one layer": {"n_layers": 1, "eps": 0.1},
    "three layers": {"n_layers": 3, "d_model": 20, "n_heads": 2, "d_head": 6, "rotary_base": 50},
}


def randomised(model):
    """Weights far from those at the start: attention uneven, gains and shifts at work."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 3 if name.endswith(("W_Q", "W_K")) else 1
            parameter.copy_(scale * parameter + 0.2 * noise)
    return model


@pytest.mark.parametrize("n_pairs", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_forward_is_the_literal_one(exemplars, variant, n_pairs):
    unit = Exemplars(exemplars.features / 27)  # else scores reach 1,000 where there is no norm
    task = FewShotTask(unit, TaskConfig(n_train_classes=12, n_pairs=n_pairs))
    config = ModelConfig(**{"d_model": 16, "n_heads": 4, "d_head": 4, **variant})
    model = randomised(build_model(task, config))
    batch = task.sample("train", 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([literal_forward(model, row) for row in batch.tokens])
    assert expected.shape == (4, 2 * n_pairs + 1, 5)
    with torch.no_grad():
        found = model(batch.tokens).double()
    # float32 against float64: 2e-6 of the largest logit at most, when measured.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def paper():
    """The paper's network, seed 5: 512 features, 5 labels."""
    exemplars = Exemplars.gaussian(n_classes=60, n_exemplars=1, n_features=512)
    return build_model(FewShotTask(exemplars))


def test_the_paper_has_66_629_parameters(paper):
    assert sum(p.numel() for p in trained_parameters(paper).values()) == 66_629


def test_only_attention_biases_are_not_trained(paper):
    for name, parameter in paper.named_parameters():
        is_bias = ".attn." in name and name.rsplit(".", 1)[1] in ATTENTION_BIASES
        assert parameter.requires_grad != is_bias, name
    frozen = set(dict(paper.named_parameters())) - set(trained_parameters(paper))
    assert len(frozen) == 2 * 4
    assert not any(dict(paper.named_parameters())[name].any() for name in frozen)


def test_training_changes_what_is_trained_and_nothing_else(model, batch):
    model(batch.tokens)[:, -1].logsumexp(dim=-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert model.embed.features.grad is None


def spread(*weights: torch.Tensor) -> float:
    return torch.cat([w.flatten() for w in weights]).std().item()


def test_initial_spreads_of_the_paper(paper):
    """As measured on the first block of the published code's seed 5, to the digits printed."""
    attention = paper.blocks[0].attn
    assert spread(paper.embed.W_in) == pytest.approx(0.0442, abs=0.00005)
    assert spread(attention.W_Q, attention.W_K, attention.W_V) == pytest.approx(0.126, abs=0.0005)
    assert spread(attention.W_O) == pytest.approx(0.124, abs=0.0005)
    assert spread(paper.unembed.W_U) == pytest.approx(0.123, abs=0.0005)


def test_initial_weights_are_the_published_code_s(shared):
    """Its seed 5, stored with qkv weights times 3, the label table times 40, biases random."""
    folder = shared / "reference" / "icl_dynamics" / "random"
    features = torch.from_numpy(np.load(folder / "arrays.npz")["features"])
    task = FewShotTask(Exemplars(features), TaskConfig(n_train_classes=12, n_train_exemplars=3))
    published = load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", task)
    ours = trained_parameters(build_model(task, seed=5))
    scales = {"W_label": 40, "W_Q": 3, "W_K": 3, "W_V": 3}
    weights = {n: w for n, w in trained_parameters(published).items() if ".W_" in n}
    assert len(weights) == 2 * 4 + 3
    for name, weight in weights.items():
        scale = scales.get(name.rsplit(".", 1)[1], 1)
        torch.testing.assert_close(weight, scale * ours[name], rtol=1e-5, atol=1e-7)


def test_initial_spread_of_the_label_table():
    """0.02 times a normal cut at two sigma, not rescaled."""
    exemplars = Exemplars.gaussian(n_classes=40, n_exemplars=1, n_features=4)
    task = FewShotTask(exemplars, TaskConfig(n_train_classes=40, n_labels=200))
    table = build_model(task).embed.W_label
    assert spread(table) == pytest.approx(0.0176, abs=4 * 0.0176 / (2 * 12_800) ** 0.5)
    assert table.abs().max() < 0.04


def test_biases_start_at_zero_and_norms_as_identities(paper):
    weights = dict(paper.named_parameters())
    for name, parameter in weights.items():
        if name.endswith((".b", "b_in", "b_U")):
            assert not parameter.any(), name
        if name.endswith(".w"):
            assert (parameter == 1).all(), name
    assert sum(name.endswith(".w") for name in weights) == 3


def test_labels_do_not_change_the_rest(exemplars):
    """The published code draws the label table and the unembedding from keys of their own."""
    five, nine = (
        dict(
            build_model(
                FewShotTask(exemplars, TaskConfig(n_train_classes=12, n_labels=n))
            ).named_parameters()
        )
        for n in (5, 9)
    )
    for name in five:
        if name in ("embed.W_label", "unembed.W_U", "unembed.b_U"):
            assert five[name].shape != nine[name].shape
        else:
            assert torch.equal(five[name], nine[name]), name


def test_weights_are_a_function_of_the_seed(task, model):
    again, other = build_model(task, seed=5), build_model(task, seed=6)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if ".W_" in name:
            assert not torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_no_two_weights_are_drawn_alike(task, variant):
    model = build_model(task, ModelConfig(**variant))
    drawn = {n: w.flatten()[:5] for n, w in trained_parameters(model).items() if ".W_" in n}
    assert all(w.all() for w in drawn.values())
    normed = {n: w / w.norm() for n, w in drawn.items()}
    for name, weight in normed.items():
        alike = [
            n for n, w in normed.items() if w.shape == weight.shape and torch.allclose(w, weight)
        ]
        assert alike == [name]


def test_building_leaves_global_randomness_alone(task):
    # Python's own `random` is not looked at: beartype, which checks types in tests, draws from it.
    of_torch, of_numpy = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    built = build_model(task, seed=3)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert (np.random.get_state()[1] == of_numpy).all()  # noqa: NPY002
    torch.manual_seed(17)
    assert torch.equal(build_model(task, seed=3).W_Q, built.W_Q)
    assert torch.initial_seed() == 17


def test_embedding_is_the_same_both_ways(model, batch):
    """Many tokens project every exemplar once, few only those that occur."""
    embed = model.embed
    n_rows = len(embed.features)
    assert batch.tokens[:1].numel() < n_rows <= batch.tokens.numel()
    weight = torch.randn(24, 5, 64, generator=torch.Generator().manual_seed(0))
    parameters = list(embed.parameters())
    outputs, gradients = [], []
    for out in (embed(batch.tokens), torch.cat([embed(row[None]) for row in batch.tokens])):
        outputs.append(out)
        gradients.append(torch.autograd.grad((out * weight).sum(), parameters))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-3)


def test_w_e_is_the_whole_embedding(task, model):
    with torch.no_grad():
        model.embed.b_in += 1  # zero at the start, where it would tell nothing
        every = torch.arange(task.d_vocab)
        expected = torch.cat([model.embed(token[None, None])[0] for token in every])
        torch.testing.assert_close(model.W_E, expected, rtol=1e-5, atol=1e-5)
    assert model.W_E.shape == (95, 64)
    assert torch.equal(model.W_E[:5], model.embed.W_label)


def test_rows_are_raw_features(exemplars, task, model):
    assert isinstance(model.embed, FewShotEmbed)
    tokens = task.token(torch.tensor([[3, 29]]), torch.tensor([[0, 2]]))
    assert torch.equal(model.embed.rows(tokens)[0, 1], exemplars.features[29, 2])
    assert torch.equal(model.embed.rows(tokens)[0, 0], exemplars.features[3, 0])


def test_features_are_no_weights(model):
    assert "embed.features" not in model.state_dict()
    assert "embed.W_in" in model.state_dict()


def test_hook_logits_replaces_the_logits(model, batch):
    assert "unembed.hook_logits" in model.hook_dict
    seen = []

    def negate(logits, hook):
        assert hook.name == "unembed.hook_logits"
        seen.append(logits)
        return -logits

    free = model(batch.tokens)
    replaced = model.run_with_hooks(batch.tokens, fwd_hooks=[("unembed.hook_logits", negate)])
    assert torch.equal(replaced, -free)
    assert torch.equal(seen[0], free)
    assert torch.equal(model(batch.tokens), free)


def test_hook_embed_is_the_embedding(model, batch):
    _, cache = model.run_with_cache(batch.tokens)
    assert torch.equal(cache["hook_embed"], model.embed(batch.tokens))
    assert torch.equal(cache["blocks.0.hook_resid_pre"], cache["hook_embed"])
    assert torch.equal(cache["unembed.hook_logits"], model(batch.tokens))


@pytest.fixture(scope="module")
def many() -> FewShotTask:
    """Exemplars more than tokens of a batch: the embedding projects those that occur alone."""
    return FewShotTask(Exemplars.gaussian(n_classes=100), TaskConfig(n_train_classes=80))


def of(parameters: dict[str, torch.Tensor], place: int) -> dict[str, torch.Tensor]:
    return {name: value[place] for name, value in parameters.items()}


# (function of f(parameters, tokens), stacked parameters and stacked tokens), and which of both each
# of its logits belongs to.
TRANSFORMS = {
    "over weights": (lambda f, p, t: vmap(f, in_dims=(0, None))(p, t[0]), [(0, 0), (1, 0)]),
    "over tokens": (lambda f, p, t: vmap(f, in_dims=(None, 0))(of(p, 0), t), [(0, 0), (0, 1)]),
    "over both": (lambda f, p, t: vmap(f)(p, t), [(0, 0), (1, 1)]),
    "in chunks": (lambda f, p, t: vmap(f, chunk_size=1)(p, t), [(0, 0), (1, 1)]),
    "forward": (
        lambda f, p, t: jvp(lambda q: f(q, t[0]), (of(p, 0),), (of(p, 1),))[0][None],
        [(0, 0)],
    ),
    "reverse": (lambda f, p, t: vjp(lambda q: f(q, t[1]), of(p, 0))[0][None], [(0, 1)]),
    "functionalized": (lambda f, p, t: functionalize(f)(of(p, 1), t[0])[None], [(1, 0)]),
    "traced": (lambda f, p, t: make_fx(f)(of(p, 0), t[0])(of(p, 1), t[1])[None], [(1, 1)]),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch, on jvp
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("transform", "pairs"), TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_passes_are_transformed_with_and_without_gradient(transform, pairs, gradient, many):
    models = [build_model(many, seed=seed) for seed in (5, 6)]
    batch = many.sample("train", 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([batch.tokens, batch.tokens.flip(0)])
    parameters, buffers = stack_module_state(models)

    def logits(p, t):
        return functional_call(models[0], (p, of(buffers, 0)), (t,))

    with torch.set_grad_enabled(gradient):
        found = transform(logits, parameters, tokens)
    assert_close(found, torch.stack([models[m](tokens[t]) for m, t in pairs]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_head": 5}, "Rotary positions turn pairs: d_head=5 must be even"),
        ({"d_mlp": 5}, r"d_mlp=5 needs attn_only=False"),
        ({"normalization_type": "BN"}, "normalization_type=.*'LN' or 'RMS'"),
        ({"n_layers": 0}, "n_layers=.*at least 1"),
        ({"layers": 1}, "layers=.*no such field"),
    ],
)
def test_refuses_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**fields)


PROCESSED = [
    {},
    {"fold_ln": False},
    {"center_writing_weights": False},
    {"refactor_factored_attn_matrices": True},
]


@pytest.mark.parametrize("options", PROCESSED, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"normalization_type": "RMS"},
        {"normalization_type": None},
        {"positional_embedding_type": "standard"},
        {"attn_only": False},
    ],
    ids=str,
)
def test_processed_weights_predict_the_same_or_stay(shape, options, task, batch):
    model = build_model(task, ModelConfig(d_model=16, n_heads=2, d_head=4, **shape))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    before, kept = ih.evaluate(model, batch).loss, copy.deepcopy(model.state_dict())
    if "refactor_factored_attn_matrices" in options and "standard" not in shape.values():
        with pytest.raises(ValueError, match="Nothing was changed"):  # rotary positions turn W_QK
            model.process_weights_(**options)
        assert model.state_dict().keys() == kept.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    else:
        model.process_weights_(**options)
        assert not torch.equal(model.unembed.W_U, kept["unembed.W_U"])
        centred = model.W_E.mean(dim=-1).abs().max() < 1e-6
        assert centred == (
            options.get("center_writing_weights", True)
            and shape.get("normalization_type", "LN") == "LN"
        )
    assert_close(ih.evaluate(model, batch).loss, before, rtol=1e-4, atol=1e-4)


def test_moved_and_copied_models_predict_the_same(model, batch):
    expected = ih.evaluate(model, batch).loss
    copied = copy.deepcopy(model)
    copied.move_model_modules_to_device()
    assert_close(ih.evaluate(copied, batch).loss, expected)
    copied.load_and_process_state_dict(model.state_dict())
    assert_close(ih.evaluate(copied, batch).loss, expected, rtol=1e-4, atol=1e-5)
    assert_close(ih.evaluate(copied.to(torch.float64), batch).loss.float(), expected)
