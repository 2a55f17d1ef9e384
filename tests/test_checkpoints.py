"""Series of checkpoints: whoever trained them, one model at a time, nothing missing in silence."""

import gc
import shutil
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import architecture
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformer_lens import HookedTransformer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import ih_interp as ih
from ih_interp import clamps
from ih_interp.checkpoints import weights_digest

NEOX = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 30}
NEOX |= {"intermediate_size": 32, "max_position_embeddings": 12}
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 30, "n_positions": 12}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
LANGUAGE_MODELS = {
    "neox": lambda **other: GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX, **ENDS, **other)),
    "gpt2": lambda **other: GPT2LMHeadModel(GPT2Config(**GPT2, **ENDS, **other)),
    "llama": lambda **other: LlamaForCausalLM(
        LlamaConfig(**NEOX, **ENDS, num_key_value_heads=1, **other)
    ),
}


@pytest.fixture
def tokens():
    drawn = torch.randint(30, (4, 10), generator=torch.Generator().manual_seed(0))
    return ih.Batch(drawn, drawn.roll(-1, 1))


def language_model(kind, seed, folder, **other):
    """A small Hugging Face model with random weights, saved in a folder of its own."""
    torch.manual_seed(seed)
    model = LANGUAGE_MODELS[kind](**other).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    """Folders step0, step4 and step64 of three models of GPT-NeoX's kind."""
    root = tmp_path_factory.mktemp("neox")
    for step in (64, 0, 4):
        language_model("neox", step, root / f"step{step}")
    return root


@pytest.fixture
def copied(neox, tmp_path):
    return shutil.copytree(neox, tmp_path / "copied")


def gpt2(seed):
    return architecture("gpt2", seed=seed)


def means(model, batch):
    """One number of each model that no other has."""
    return float(model(batch.tokens).detach().double().mean())


def by_hand(models, batch):
    return [means(model, batch) for model in models]


# Models of the user's


def test_models_in_memory(tokens):
    models = {0: gpt2(0), 5: gpt2(1), 100: gpt2(2)}
    table = ih.trace(ih.ModelSeries(models), means, batch=tokens)
    assert list(table.columns) == ["step", "name", "value"]
    assert table["step"].to_list() == [0, 5, 100]
    assert table["value"].to_list() == by_hand(models.values(), tokens)
    assert ih.ModelSeries(models).model(5) is models[5]


def test_weights_and_files_of_weights(tokens, tmp_path):
    models = [gpt2(seed) for seed in range(4)]
    save_file(dict(models[1].state_dict()), tmp_path / "1.safetensors")
    torch.save(models[2].state_dict(), tmp_path / "2.pt")
    torch.save(dict(models[3].named_parameters()), tmp_path / "3.bin")  # without buffers
    given = {0: models[0].state_dict(), 1: tmp_path / "1.safetensors", 2: str(tmp_path / "2.pt")}
    series = ih.ModelSeries({**given, 3: tmp_path / "3.bin"}, build=lambda: gpt2(9))
    table = ih.trace(series, means, batch=tokens)
    assert table["value"].to_list() == by_hand(models, tokens)


@pytest.mark.untyped  # integers of any library
def test_a_function_of_the_step(tokens):
    asked = []

    def load(step):
        asked.append(step)
        assert type(step) is int
        return gpt2(step)

    assert ih.ModelSeries({np.int64(3): gpt2(0)}).steps == [3]
    series = ih.ModelSeries(load, steps=[7, np.int64(2), torch.tensor(30)])
    assert series.steps == [2, 7, 30]
    assert asked == []
    table = ih.trace(series, means, batch=tokens, steps=np.array([30, 2]))
    assert asked == [30, 2]
    assert table["step"].to_list() == [30, 2]
    assert table["value"].to_list() == by_hand([gpt2(30), gpt2(2)], tokens)


def test_one_step_and_some_of_them(tokens):
    assert len(ih.trace(ih.ModelSeries({3: gpt2(0)}), means, batch=tokens)) == 1
    assert ih.ModelSeries({3: gpt2(0), 1: gpt2(1)}, steps=[1]).steps == [1]


def test_any_class_with_steps_and_models_is_a_series(tokens):
    class Mine:
        steps = (8, 1)

        def model(self, step):
            return gpt2(step)

    assert isinstance(Mine(), ih.Checkpoints)
    table = ih.trace(Mine(), means, batch=tokens)
    assert table["step"].to_list() == [1, 8]
    assert table["value"].to_list() == by_hand([gpt2(1), gpt2(8)], tokens)
    Mine.sequences_per_step = 32
    assert ih.trace(Mine(), means, batch=tokens)["sequences"].to_list() == [32, 256]
    Mine.model = lambda self, step: gpt2(0)
    with pytest.warns(UserWarning, match="steps 1 and 8"):
        ih.trace(Mine(), means, batch=tokens)


@pytest.mark.parametrize("kind", ["neox", "llama, grouped", "attention only, no norm", "bloom"])
def test_series_of_other_architectures(kind, tokens):
    models = {step: architecture(kind, seed=step) for step in (0, 1)}
    states = {step: model.state_dict() for step, model in models.items()}
    series = ih.ModelSeries(states, build=lambda: architecture(kind, seed=5))
    expected = by_hand(models.values(), tokens)
    assert ih.trace(series, means, batch=tokens)["value"].to_list() == expected


def test_a_run_is_a_series(small_run):
    assert isinstance(small_run, ih.Checkpoints)
    assert small_run.sequences_per_step == 8
    batch = small_run.task.sample("train", 10, seed=0)
    own = ih.trace(small_run, ih.evaluate, batch=batch)
    series = ih.ModelSeries(small_run.model, small_run.steps, sequences_per_step=8)
    assert ih.trace(series, ih.evaluate, batch=batch).equals(own)


# Folders of Hugging Face's, and TransformerLens's names


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_local_folder_gives_the_models_own_logits(kind, tokens, tmp_path):
    for step in (0, 10):
        language_model(kind, step, tmp_path / f"checkpoint-{step}")
    series = ih.Pretrained(tmp_path)
    assert series.steps == [0, 10]
    for step in series.steps:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}")
        model = series.model(step)
        assert_close(model(tokens.tokens), theirs(tokens.tokens).logits, atol=1e-4, rtol=1e-4)
        assert not model.training
    table = ih.trace(series, ih.evaluate, batch=tokens)
    losses = table[table["name"] == "loss"]["value"].to_list()
    targets = tokens.targets
    with torch.no_grad():
        theirs = torch.nn.functional.cross_entropy(
            model(tokens.tokens).flatten(0, 1), targets.flatten()
        )
    assert losses[1] == pytest.approx(theirs.item(), abs=1e-4)


def test_a_pattern_of_folders_and_some_steps(neox, tmp_path, tokens):
    shutil.copytree(neox / "step0", tmp_path / "b" / "at_10" / "hf")
    shutil.copytree(neox / "step4", tmp_path / "b" / "at_200" / "hf")
    (tmp_path / "b" / "at_last").mkdir()
    series = ih.Pretrained(str(tmp_path / "b" / "at_{step}" / "hf"), steps=[200])
    assert series.steps == [200]
    assert weights_digest(series.model(200)) == weights_digest(ih.Pretrained(neox).model(4))
    assert repr(ih.Pretrained(neox)).endswith("3 checkpoints, steps 0 to 64)")


def test_a_precision_is_an_option(neox):
    model = ih.Pretrained(neox, dtype=torch.bfloat16).model(4)
    assert next(model.parameters()).dtype == model.cfg.dtype == torch.bfloat16


def test_folders_are_weights_of_a_series_too(neox, tokens):
    one, other = ih.ModelSeries({9: neox / "step4"}), ih.Pretrained(neox, [4])
    expected = ih.trace(other, means, batch=tokens)["value"].to_list()
    assert ih.trace(one, means, batch=tokens)["value"].to_list() == expected


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: a model by the step that TransformerLens is asked for."""
    asked = []

    def from_pretrained(name, checkpoint_value, **options):
        asked.append((name, checkpoint_value, options))
        print("Loaded pretrained model")  # noqa: T201
        return gpt2(checkpoint_value)

    monkeypatch.setattr(HookedTransformer, "from_pretrained", from_pretrained)
    return asked


def test_a_named_models_checkpoints(hub, tokens, capsys):
    series = ih.Pretrained("pythia-70m", steps=[512, 0, 1000], sequences_per_step=1_024)
    assert hub == []
    table = ih.trace(series, means, batch=tokens)
    assert table["step"].to_list() == [0, 512, 1000]
    assert table["sequences"].to_list() == [0, 512 * 1024, 1000 * 1024]
    assert table["value"].to_list() == by_hand(map(gpt2, [0, 512, 1000]), tokens)
    assert [(name, step) for name, step, _ in hub] == [("pythia-70m", n) for n in (0, 512, 1000)]
    assert all(options["fold_ln"] is False for *_, options in hub)
    assert capsys.readouterr().out == ""
    ih.Pretrained("pythia-70m", steps=[1], fold_ln=True).model(1)
    assert hub[-1][-1]["fold_ln"] is True


def test_all_steps_of_a_named_model():
    every = ih.Pretrained("pythia-70m")
    assert len(every.steps) == 154
    assert every.steps[:5] == [0, 1, 2, 4, 8]
    assert every.steps[-1] == 143_000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ih.Pretrained("pythia-70m", steps=[0, 3, 512]), r"pythia-70m.*\[3\].*154 in all"),
        (lambda: ih.Pretrained("pythia-7m"), "pythia-7m.*folder"),
        (lambda: ih.Pretrained("gpt2"), "gpt2.*checkpoints"),
        (lambda: ih.Pretrained("./nowhere"), "nowhere.*folder"),
    ],
)
def test_a_name_or_a_step_that_is_not_there(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# What is missing, damaged, twice or another


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_before_anything_is_measured(copied, name):
    (copied / "step4" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"step 4.*step4 lacks {name}"):
        ih.Pretrained(copied)
    assert ih.Pretrained(copied, steps=[0, 64]).steps == [0, 64]
    with pytest.raises(FileNotFoundError, match=name):
        ih.ModelSeries({0: copied / "step0", 4: copied / "step4"})


def test_a_shard_that_is_missing_is_named(tmp_path, tokens):
    model = language_model("neox", 0, tmp_path / "step1")
    model.save_pretrained(tmp_path / "step2", max_shard_size="10KB")
    assert len(list((tmp_path / "step2").glob("*.safetensors"))) > 2
    with pytest.warns(UserWarning, match="steps 1 and 2"):
        table = ih.trace(ih.Pretrained(tmp_path), means, batch=tokens)
    assert table["value"].nunique() == 1
    gone = sorted((tmp_path / "step2").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        ih.Pretrained(tmp_path)
    (tmp_path / "step2" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        ih.Pretrained(tmp_path)


def test_a_folder_that_goes_meanwhile(copied):
    series = ih.Pretrained(copied)
    shutil.rmtree(copied / "step64")
    with pytest.raises(FileNotFoundError, match="step 64"):
        series.model(64)


def test_weights_that_are_missing_are_not_drawn_at_random(copied):
    path = copied / "step4" / "model.safetensors"
    weights = load_file(path)
    weights.pop("gpt_neox.layers.0.attention.dense.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"step 4.*dense\.weight"):
        ih.Pretrained(copied).model(4)


def test_damaged_files_are_told_by_their_step(copied, tmp_path):
    path = copied / "step4" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="step 4"):
        ih.Pretrained(copied).model(4)
    (tmp_path / "0.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"step 0.*0\.pt"):
        ih.ModelSeries({0: tmp_path / "0.pt"}, build=lambda: gpt2(0)).model(0)


def test_a_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"embed.W_E": Evil()}, tmp_path / "0.pt")
    with pytest.raises(ValueError, match="step 0"):
        ih.ModelSeries({0: tmp_path / "0.pt"}, build=lambda: gpt2(0)).model(0)
    assert not (tmp_path / "made").exists()


def test_two_steps_of_the_same_bytes_are_told(copied, tokens):
    shutil.rmtree(copied / "step64")
    shutil.copytree(copied / "step4", copied / "step64")
    with pytest.warns(UserWarning, match="steps 4 and 64") as told:
        ih.trace(ih.Pretrained(copied), means, batch=tokens)
    assert len([one for one in told if "same weights" in str(one.message)]) == 1
    model = gpt2(0)
    with pytest.warns(UserWarning, match="steps 1 and 2"):
        ih.trace(ih.ModelSeries({2: model, 1: model}), means, batch=tokens)


def test_one_step_twice_is_no_copy(neox):
    series = ih.Pretrained(neox)
    assert weights_digest(series.model(4)) == weights_digest(series.model(4))
    assert len({weights_digest(series.model(step)) for step in series.steps}) == 3


def test_another_architecture_in_the_middle_is_refused(copied, tokens):
    shutil.rmtree(copied / "step4")
    language_model("neox", 4, copied / "step4", use_parallel_residual=False)
    with pytest.raises(ValueError, match=r"step 4 is another architecture than step 0.*parallel"):
        ih.trace(ih.Pretrained(copied), means, batch=tokens)
    wider = architecture("gpt2", d_mlp=44)
    with pytest.raises(ValueError, match=r"step 3 is another .*d_mlp is 40 there, 44 here"):
        ih.trace(ih.ModelSeries({0: gpt2(0), 3: wider}), means, batch=tokens)


def test_folders_of_one_step_and_none(copied, tmp_path):
    shutil.copytree(copied / "step4", copied / "checkpoint-4")
    with pytest.raises(ValueError, match="both of step 4"):
        ih.Pretrained(copied)
    assert ih.Pretrained(f"{copied}/checkpoint-{{step}}").steps == [4]
    with pytest.raises(FileNotFoundError, match="folder per step"):
        ih.Pretrained(copied / "step0")
    with pytest.raises(FileNotFoundError, match="folder per step"):
        ih.Pretrained(tmp_path / "nowhere")


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ih.ModelSeries({}), ValueError, "steps"),
        (lambda: ih.ModelSeries({0: 5}).model(0), TypeError, "step 0.*int"),
        (
            lambda: ih.ModelSeries({4: {"model": gpt2(0).state_dict(), "step": 4}}).model(4),
            TypeError,
            "step 4.*model.*no tensors",
        ),
        (lambda: ih.ModelSeries([gpt2(0)]), TypeError, "models.*list"),
        (lambda: ih.ModelSeries(gpt2(0), [0]), TypeError, "models.*HookedTransformer"),
        (lambda: ih.ModelSeries(gpt2), ValueError, "steps=None"),
        (lambda: ih.ModelSeries(gpt2, [1, 1]), ValueError, "steps"),
        (lambda: ih.ModelSeries(gpt2, [-1]), ValueError, "steps"),
        (lambda: ih.ModelSeries(gpt2, [1.0]), TypeError, r"steps\[0\]"),
        (lambda: ih.ModelSeries(gpt2, 3), TypeError, "steps=3"),
        (lambda: ih.ModelSeries({"a": gpt2(0)}), TypeError, "steps"),
        (lambda: ih.ModelSeries({0: gpt2(0)}, steps=[0, 2]), ValueError, r"\[2\].*\[0\]"),
        (lambda: ih.ModelSeries({0: gpt2(0)}).model(2), ValueError, "no checkpoint at step 2"),
        (lambda: ih.ModelSeries({0: "no/where.pt"}), FileNotFoundError, "step 0.*where"),
        (lambda: ih.ModelSeries({0: gpt2(0).state_dict()}).model(0), ValueError, "build=None"),
        (lambda: ih.ModelSeries({0: gpt2(0)}, build=gpt2(0).cfg), TypeError, "build="),
        (lambda: ih.ModelSeries(gpt2, [0], sequences_per_step=0), ValueError, "sequences_per_step"),
        (lambda: ih.trace({0: gpt2(0)}, means), TypeError, "checkpoints.*dict.*ModelSeries"),
        (lambda: ih.trace(gpt2(0), means), TypeError, "checkpoints.*HookedTransformer"),
        (lambda: ih.trace(ih.ModelSeries(gpt2, [0]), means), ValueError, "batch=None"),
        (lambda: ih.Pretrained(5), TypeError, "int"),
    ],
)
def test_what_is_no_series_is_told_in_words(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_weights_of_another_model_are_told_by_their_names():
    state = dict(gpt2(0).state_dict())

    def given(changed):
        return lambda: ih.ModelSeries({4: changed}, build=lambda: gpt2(1)).model(4)

    prefixed = {f"module.{name}": weight for name, weight in state.items()}
    lacking = {name: weight for name, weight in state.items() if name != "embed.W_E"}
    for changed, kind, words in (
        (prefixed, ValueError, r"step 4.*module\.blocks"),
        (lacking, ValueError, r"embed\.W_E are missing, and none"),
        (architecture("gpt2", d_mlp=44).state_dict(), ValueError, "step 4.*W_in"),
        ({}, TypeError, "step 4"),
    ):
        with pytest.raises(kind, match=words):
            given(changed)()


# Memory


class Alive:
    """How many of the models made so far are still there, each time that one is asked for."""

    def __init__(self, load):
        self.load, self.models, self.counts = load, [], []

    def __call__(self, step):
        self.counts.append(sum(ref() is not None for ref in self.models))
        model = self.load(step)
        self.models.append(weakref.ref(next(iter(model.parameters()))))
        return model


@pytest.mark.parametrize("kind", ["built", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_series_of_twenty_checkpoints_costs_one_model(kind, tokens, neox):
    load = {"built": gpt2, "folder": lambda step: ih.ModelSeries({0: neox / "step4"}).model(0)}[
        kind
    ]
    alive = Alive(lambda step: _numbered(load(step), step))
    gc.disable()  # nobody else shall clean up
    try:
        ih.trace(ih.ModelSeries(alive, steps=range(20)), means, batch=tokens)
    finally:
        gc.enable()
    assert alive.counts == [0] * 20


def _numbered(model, step):
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = step
    return model


def test_measures_over_training_take_one_model_at_a_time(tokens):
    alive = Alive(gpt2)
    series = ih.ModelSeries(alive, steps=range(5))
    other = ih.Batch(tokens.tokens.flip(0), tokens.targets.flip(0))
    ih.patching.wiring_over_training(
        series, lambda part: other[: len(part)], batch=tokens, via="k", metric="loss"
    )
    assert alive.counts == [0] * 5


# Clamps, and what is measured over series


def test_clamps_act_on_every_checkpoint(tokens):
    series = ih.ModelSeries(gpt2, steps=[0, 5])
    ablated = clamps.AblateHeads(heads=["L0H1"], schedule=clamps.during(3))
    table = ih.trace(series, means, batch=tokens, clamps=[ablated])
    with ih.clamped(gpt2(5), [clamps.AblateHeads(heads=["L0H1"])], tokens) as model:
        expected = [means(gpt2(0), tokens), means(model, tokens)]
    assert table["value"].to_list() == expected
    under = ih.progress(series, [ablated], batch=tokens, name="ablated")
    assert list(under.columns) == ["step", "name", "value", "clamp"]


def test_a_clamp_that_waits_for_a_level_is_refused(tokens):
    waiting = clamps.AblateHeads(heads=["L0H1"], schedule=clamps.from_level(below=1.0))
    with pytest.raises(ValueError, match="waits for a level"):
        ih.trace(ih.ModelSeries(gpt2, [0]), means, batch=tokens, clamps=[waiting])


@pytest.mark.parametrize("change", ["weights", "hooks"])
def test_a_measure_that_leaves_a_model_changed_is_refused(change, tokens):
    def measure(model, batch):
        if change == "hooks":
            model.add_hook("hook_embed", lambda activation, hook: activation)
        else:
            model.W_E.data.mul_(2)
        return 1.0

    with pytest.raises(ValueError, match=f"measure left.*{change}"):
        ih.trace(ih.ModelSeries({0: gpt2(0)}), measure, batch=tokens)


def test_tokens_that_a_later_model_lacks_are_refused(tokens):
    series = ih.ModelSeries(lambda step: architecture("gpt2", d_vocab=20), [0])
    with pytest.raises(ValueError, match="expected tokens"):
        ih.trace(series, means, batch=tokens)


def swap(batch):
    return ih.Batch(batch.tokens.flip(0), batch.targets.flip(0))


def test_wiring_and_redundancy_over_steps(tokens):
    series = ih.ModelSeries(gpt2, steps=[0, 8])
    given = {"batch": tokens, "via": "k", "metric": "loss"}
    wiring = ih.patching.wiring_over_training(series, swap, **given)
    assert list(wiring.columns)[:2] == ["step", "via"]
    alone = ih.wiring_map(gpt2(8), tokens, swap(tokens), via="k", metric="loss").table()
    assert wiring[wiring["step"] == 8]["effect"].to_list() == alone["effect"].to_list()
    redundancy = ih.patching.redundancy_over_training(
        series, swap, **given, bootstrap_options={"n_resamples": 5}
    )
    assert list(redundancy.columns) == ["step", "via", "name", "value", "low", "high"]
    receiver = wiring["receiver"].iloc[0]
    ax = ih.plots.plot_wiring_over_training(wiring, receiver=receiver)
    assert ax.get_xlabel() == "step"
    assert ih.plots.plot_redundancy_over_training(redundancy).get_xlabel() == "step"
    with pytest.raises(ValueError, match="batch=None"):
        ih.patching.redundancy_over_training(series, swap)


def test_times_of_emergence_are_in_steps_where_sequences_are_not_known():
    steps = [0, 10, 100, 1_000]
    curves = pd.DataFrame(
        {"step": steps * 2, "loss": [3, 2, 0.5, 0.1, 3, 3, 2, 1.9], "seed": [0] * 4 + [1] * 4}
    ).assign(clamp="none")
    times = ih.dynamics.emergence_table(curves, lambda x, y: ih.dynamics.learned(x, y, level=1.0))
    assert times["time"].to_list() == pytest.approx([70.0, 1_000])
    assert set(times["unit"]) == {"step"}
    assert "step until learned" in ih.plots.plot_emergence(times).get_xlabel()
    survival = ih.dynamics.survival_table(times)
    assert "step" in survival
    assert ih.plots.plot_survival(survival).get_xlabel() == "step"
    known = ih.dynamics.emergence_table(curves.assign(sequences=curves["step"] * 8))
    assert "unit" not in known
    with pytest.raises(ValueError, match="one unit"):
        ih.dynamics.survival_table(pd.concat([times, known]))
    curve = curves[curves["seed"] == 0]
    assert ih.plots.plot_transition(curve, marks={"learned": 70}).get_xlabel() == "step"
    table = ih.plots.plot_clamped_losses(curves)
    assert table.get_xlabel() == "step"
    assert ih.plots.plot_losses(curves.assign(split="test")).get_xlabel() == "step"


def test_scores_of_heads_over_steps_are_drawn(tokens):
    series = ih.ModelSeries(gpt2, steps=[0, 8, 16])
    table = ih.trace(
        series, lambda model, batch: ih.heads.previous_token_score(model, batch), batch=tokens
    )
    ax = ih.plots.plot_strengths(table, layer=1)
    assert ax.get_xlabel() == "step"
    assert list(ax.lines[0].get_xdata()) == [0, 8, 16]


def test_weights_digest_knows_every_bit():
    one, other = gpt2(0), gpt2(0)
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.W_E.view(-1)[-1] = torch.nextafter(other.W_E.view(-1)[-1], torch.tensor(torch.inf))
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest(one) != weights_digest(gpt2(0).to(torch.bfloat16))
