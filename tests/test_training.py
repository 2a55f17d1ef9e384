"""The traced update against the eager one, fleets against runs alone, resume, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps, store
from ih_interp.config import AdamConfig, Grid, RunConfig, Seeds
from ih_interp.exemplars import GaussianSource
from ih_interp.tracing.forward import compiler_found
from ih_interp.tracing.graph import spell_out_tiny_products
from ih_interp.tracing.rows import Rows
from ih_interp.training import (
    fleet as fleet_module,
    loop,
    measure,
    state,
    train as training_module,
)
from ih_interp.training.data import training_sequences
from ih_interp.training.fleet import Fleet, fleets
from ih_interp.training.state import TrainingFailedError
from ih_interp.training.step import flat_inputs, trace_update

SMALL = RunConfig(
    name="small",
    exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16),
    task=ih.TaskConfig(n_train_classes=8),
    optimiser=AdamConfig(learning_rate=1e-3),
    sequences=24 * 8,
    batch_size=8,
    evaluations=Grid(every=64),
    evaluation_size=20,
    checkpoints=Grid(every=64),
)

EVERY_KIND = {
    "none": [],
    "ablate_heads": [clamps.AblateHeads(heads=["L0H1", "L1H0"])],
    "previous_token": [clamps.PreviousTokenAttention(heads=["L0H2"], strength=0.6)],
    "previous_token_labels": [clamps.PreviousTokenAttention(heads=["L0H2"], queries="labels")],
    "forbid": [clamps.ForbidPreviousToken(heads=["L0H2", "L0H3"])],
    "induction": [clamps.InductionAttention(heads=["L1H3"], strength=0.9)],
    "match": [clamps.MatchAttention(heads=["L1H3"], temperature=0.5)],
    "match_hard": [clamps.MatchAttention(heads=["L1H3"])],
    "temperature": [clamps.AttentionTemperature(heads=["L1H3"], temperature=0.5)],
    "labels_only": [clamps.AttendLabelsOnly(heads=["L1H3"])],
    "copy": [clamps.copy("L1H3")],
    "layer_one": [clamps.layer_one()],
    "layer_one_and_copy": [*clamps.b_alone("L1H3")],
    "a_alone": [*clamps.a_alone()],
    "preserve": [clamps.Preserve(what=["patterns"]), clamps.AblateHeads(heads=["L0H1"])],
    "ablate_embedding": [
        clamps.Preserve(what=["values", "queries"]),
        clamps.AblateEmbedding(schedule=clamps.ramp(0, 10, high=0.5)),
    ],
    "scheduled": [
        clamps.InductionAttention(heads=["L1H3"], schedule=clamps.ramp(2, 9)),
        clamps.ForbidPreviousToken(heads=["L0H1"], schedule=clamps.during(3, 6)),
        clamps.AttentionTemperature(heads=["L1H1"], temperature=2, schedule=clamps.pulses(4)),
        clamps.AblateHeads(heads=["L1H0"]),
    ],
}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_fleet(tmp_path, configs):
    from ih_interp.runs import create_run

    runs = []
    for config in configs:
        task = ih.FewShotTask(ih.Exemplars.from_source(config.exemplars), config.task)
        runs.append(create_run(tmp_path / config.name, config, task, engine="eager"))
    return Fleet(runs, compiled=False)


def graph_step(fleet):
    """The traced update, run as it is: what the compiler is given."""
    config = fleet.runs[0].config
    model = ih.build_model(fleet.runs[0].task, config.model)
    inputs = fleet.inputs()
    graph = trace_update(
        model, clamps.in_order(config.clamps), config.optimiser, fleet.state, inputs
    )
    spell_out_tiny_products(graph)
    return lambda state, inputs: graph(*state.flat, *flat_inputs(inputs))


def losses_together_and_apart(tmp_path, configs, *, updates):
    """Losses `[update, run]` of a traced fleet, and of its runs trained eagerly, each alone."""
    fleet = make_fleet(tmp_path / "fleet", configs)
    fleet._step = graph_step(fleet)
    alone = [make_fleet(tmp_path / "alone", [config]) for config in configs]
    with torch.no_grad():
        together = torch.stack([fleet.advance() for _ in range(updates)])
    apart = [torch.stack([one.advance() for _ in range(updates)]) for one in alone]
    return together, torch.cat(apart, dim=1)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_traced_fleet_trains_as_each_run_alone(kind, tmp_path, one_thread):
    chosen = EVERY_KIND[kind]
    configs = [
        SMALL.replace(
            name=f"run-{seed}", clamps=chosen, seeds=Seeds(init=seed, data=seed, evaluation=1)
        )
        for seed in (5, 6, 7)
    ]
    together, apart = losses_together_and_apart(tmp_path, configs, updates=12)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert (apart[-1] < apart[0]).any() or kind in ("preserve", "ablate_embedding")


@pytest.mark.parametrize("n_classes", [8, 60, 90])
def test_a_fleet_can_have_more_classes_than_positions(n_classes, tmp_path, one_thread):
    """40 positions an update: a table of all exemplars is read, or each is embedded by itself."""
    config = SMALL.replace(
        exemplars=GaussianSource(n_classes=120, n_exemplars=2, n_features=16),
        task=ih.TaskConfig(n_train_classes=n_classes),
        clamps=[clamps.AblateHeads(heads=["L1H0"])],
    )
    configs = [config.replace(name=f"run-{seed}", seeds=Seeds(init=seed)) for seed in (5, 6)]
    together, apart = losses_together_and_apart(tmp_path, configs, updates=8)
    assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [clamps.GraftIn, clamps.GraftOut])
def test_donors_differ_between_runs_of_a_fleet(kind, tmp_path, one_thread):
    """More classes than positions: no trace can ask which of them a batch shows."""
    base = SMALL.replace(
        exemplars=GaussianSource(n_classes=120, n_exemplars=2, n_features=16),
        task=ih.TaskConfig(n_train_classes=90),
    )
    donors = [
        base.replace(
            name=f"donor-{n}",
            seeds=Seeds(init=n),
            clamps=[clamps.PreviousTokenAttention(heads=[f"L0H{n}"], strength=n / 10)],
        )
        for n in (5, 6)
    ]
    ih.train(donors, tmp_path, progress=False)
    configs = [
        base.replace(
            name=d.name + "-grafted", clamps=[kind(run=str(tmp_path / d.name), step=24, layer=0)]
        )
        for d in donors
    ]
    assert len(fleets(configs, 8)) == 1
    together, apart = losses_together_and_apart(tmp_path, configs, updates=8)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=1e-3)


def test_clamp_parameters_differ_between_runs_of_a_fleet(tmp_path, one_thread):
    configs = [
        SMALL.replace(
            name=f"s{strength}",
            clamps=[clamps.InductionAttention(heads=[head], strength=strength)],
            optimiser=AdamConfig(learning_rate=rate),
        )
        for strength, head, rate in ((1.0, "L1H3", 1e-3), (0.2, "L1H5", 1e-4))
    ]
    assert len(fleets(configs, 8)) == 1
    together, apart = losses_together_and_apart(tmp_path, configs, updates=10)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert not torch.allclose(apart[:, 0], apart[:, 1])


@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
def test_compiled_and_eager_give_the_same_losses_over_200_updates(tmp_path, one_thread):
    config = SMALL.replace(
        sequences=200 * 8,
        clamps=[
            clamps.PreviousTokenAttention(heads=["L0H2"], schedule=clamps.ramp(50, 150)),
            clamps.AblateHeads(heads=["L1H0", "L1H1"]),
        ],
        optimiser=AdamConfig(learning_rate=1e-4),
    )
    eager = make_fleet(tmp_path / "eager", [config])
    compiled = make_fleet(tmp_path / "compiled", [config])
    compiled._compiled = True
    slow = torch.cat([eager.advance() for _ in range(200)])
    fast = torch.cat([compiled.advance() for _ in range(200)])
    assert_close(fast, slow, rtol=0, atol=1e-5)
    assert slow[-20:].mean() < slow[:20].mean()


def test_eager_training_is_torch_adam_on_the_clamped_model(tmp_path, one_thread):
    """Against the plainest loop: `clamped`, cross-entropy, backward, `torch.optim.Adam`."""
    config = SMALL.replace(clamps=[clamps.InductionAttention(heads=["L1H3"], strength=0.7)])
    fleet = make_fleet(tmp_path, [config])
    found = torch.cat([fleet.advance() for _ in range(20)])
    task = ih.FewShotTask(ih.Exemplars.from_source(config.exemplars), config.task)
    model = ih.build_model(task, seed=5)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3, foreach=False)
    chunk = training_sequences(task, config, 0)
    losses = []
    for step in range(20):
        batch = chunk[step * 8 : (step + 1) * 8]
        with ih.clamped(model, config.clamps, batch):
            logits = model(batch.tokens)[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, batch.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert_close(found, torch.stack(losses), rtol=1e-5, atol=1e-6)


def test_renumbered_rows_are_the_same_exemplars(task):
    rows = Rows.of_splits(task, ["train"])
    tokens = task.enumerate("train").tokens
    from ih_interp.task import features_by_token

    exemplars = tokens[:, [0, 2, 4]] - task.n_labels
    renumbered = rows.renumber[tokens][:, [0, 2, 4]] - task.n_labels
    whole = features_by_token(task.exemplars)
    assert torch.equal(rows.features[renumbered], whole[exemplars])
    assert torch.equal(rows.renumber[tokens][:, [1, 3]], tokens[:, [1, 3]])


def folder_bytes(folder):
    """Everything of a run that must not depend on how it came about."""
    names = [store.METRICS, *(f"checkpoints/{p.name}" for p in (folder / "checkpoints").iterdir())]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def test_a_run_folder_holds_the_whole_run(tmp_path):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    assert run.finished
    assert run.steps == [0, 8, 16, 24]
    assert not (run.folder / store.STATE).exists()
    table = run.metrics
    assert sorted(table["step"].unique()) == [0, 8, 16, 24]
    assert (table["sequences"] == 8 * table["step"]).all()
    assert table.groupby(["step", "split"]).size().max() == 1
    recorded = json.loads((run.folder / store.CONFIG).read_text())
    assert RunConfig.load(recorded["run"]) == SMALL
    assert recorded["versions"]["torch"] == str(torch.__version__).split("+")[0] or recorded[
        "versions"
    ]["torch"].startswith(str(torch.__version__))
    assert ih.Run(run.folder).config == SMALL


def stop_after_an_update(root, monkeypatch, *, engine="auto"):
    """Begin the small run, and leave it as a scheduler's SIGTERM would."""
    advance = Fleet.advance

    def stop(fleet):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(fleet)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            ih.train(SMALL, root, engine=engine, progress=False)


@pytest.mark.parametrize("stop_at", [1, 8, 9, 23, 24])
def test_a_stopped_run_resumes_to_the_same_bytes(stop_at, tmp_path, monkeypatch):
    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    advance = Fleet.advance

    def advance_then_signal(fleet):
        losses = advance(fleet)
        if fleet.runs[0].step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    monkeypatch.setattr(Fleet, "advance", advance_then_signal)
    with pytest.raises(KeyboardInterrupt):
        ih.train(SMALL, tmp_path / "resumed", progress=False)
    stopped = ih.Run(tmp_path / "resumed" / "small")
    assert not stopped.finished
    assert state.saved_step(stopped.folder) == stop_at
    monkeypatch.setattr(Fleet, "advance", advance)
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_an_evaluation_that_is_interrupted_at_the_end_is_done_again(tmp_path, monkeypatch):
    configs = [SMALL.replace(name=f"run-{seed}", seeds=Seeds(init=seed)) for seed in (5, 6)]
    straight = ih.train(configs, tmp_path / "straight", progress=False)
    evaluate = measure.Evaluator.measure

    def interrupted(evaluator, run, weights):
        if run.step == 24:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(evaluator, run, weights)

    with monkeypatch.context() as patch:
        patch.setattr(measure.Evaluator, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ih.train(configs, tmp_path / "resumed", progress=False)
    saved = [state.saved_step(tmp_path / "resumed" / config.name) for config in configs]
    assert saved == [24, 24]
    resumed = ih.train(configs, tmp_path / "resumed", progress=False)
    for one, other in zip(straight, resumed, strict=True):
        assert folder_bytes(one.folder) == folder_bytes(other.folder)
        assert not store.saved_states(other.folder)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    """Killed between two saves: what came after the last one is done again."""
    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    advance = Fleet.advance

    def die_at_17(fleet):
        if fleet.runs[0].step == 17:
            raise RuntimeError("killed")
        return advance(fleet)

    monkeypatch.setattr(Fleet, "advance", die_at_17)
    with pytest.raises(RuntimeError, match="killed"):
        ih.train(SMALL, tmp_path / "killed", progress=False)
    monkeypatch.setattr(Fleet, "advance", advance)
    (resumed,) = ih.train(SMALL, tmp_path / "killed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_a_finished_run_is_not_touched(tmp_path, monkeypatch):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    before = folder_bytes(run.folder)
    monkeypatch.setattr(Fleet, "advance", lambda fleet: pytest.fail("trained again"))
    (again,) = ih.train(SMALL, tmp_path, progress=False)
    assert folder_bytes(again.folder) == before


def test_runs_of_different_lengths_train_in_one_fleet(tmp_path):
    short = SMALL.replace(name="short", sequences=10 * 8)
    long = SMALL.replace(name="long", seeds=Seeds(init=6))
    together = ih.train([short, long], tmp_path / "together", progress=False)
    alone = [ih.train(c, tmp_path / "alone", progress=False)[0] for c in (short, long)]
    for one, other in zip(together, alone, strict=True):
        assert folder_bytes(one.folder) == folder_bytes(other.folder)


def test_one_runs_nan_ends_that_run_alone(tmp_path):
    wild = SMALL.replace(name="wild", optimiser=AdamConfig(learning_rate=1e30))
    with pytest.raises(
        TrainingFailedError, match=r"wild: the loss was (nan|inf) at update \d+; lower"
    ):
        ih.train([wild, SMALL], tmp_path, progress=False)
    assert ih.Run(tmp_path / "small").finished
    assert not ih.Run(tmp_path / "wild").finished
    (alone,) = ih.train(SMALL, tmp_path / "alone", progress=False)
    assert folder_bytes(tmp_path / "small") == folder_bytes(alone.folder)


def test_metrics_go_to_the_callback(tmp_path):
    rows = []
    (run,) = ih.train(
        SMALL, tmp_path, progress=False, on_metrics=lambda run, row: rows.append((run.folder, row))
    )
    assert [row for _, row in rows] == store.read_metrics(run.folder)
    assert {folder for folder, _ in rows} == {run.folder}


@pytest.mark.parametrize("step", [0, 16, 24])
def test_what_the_callback_raises_is_raised_with_everything_saved(step, tmp_path):
    def fail(_, row):
        if row["step"] == step:
            raise OSError("the dashboard is down")

    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    with pytest.raises(OSError, match=r"^the dashboard is down$"):
        ih.train(SMALL, tmp_path / "resumed", progress=False, on_metrics=fail)
    assert store.saved_states(tmp_path / "resumed" / "small")
    assert state.saved_step(tmp_path / "resumed" / "small") == step
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_a_clamp_can_wait_for_a_level(tmp_path):
    """The evaluation before the first update is below the level: on from the update after it."""
    schedule = clamps.from_level("loss", below=100.0)
    waiting = SMALL.replace(
        name="waiting", clamps=[clamps.InductionAttention(heads=["L1H3"], schedule=schedule)]
    )
    second = waiting.replace(
        name="second",
        clamps=[clamps.InductionAttention(heads=["L1H3"], schedule=clamps.during(start=1))],
    )
    never = waiting.replace(
        name="never",
        clamps=[
            clamps.InductionAttention(
                heads=["L1H3"], schedule=clamps.from_level("loss", below=-1.0)
            )
        ],
    )
    free = SMALL.replace(name="free")
    runs = dict(
        zip(
            ("waiting", "second", "never", "free"),
            ih.train([waiting, second, never, free], tmp_path, progress=False),
            strict=True,
        )
    )
    losses = {
        name: run.metrics.query("split == 'train'")["loss"].to_list() for name, run in runs.items()
    }
    assert losses["waiting"] == pytest.approx(losses["second"], abs=1e-6)
    assert losses["waiting"][1] != pytest.approx(losses["free"][1], abs=1e-3)
    assert losses["never"] == pytest.approx(losses["free"], abs=1e-6)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([SMALL, SMALL], "Several runs are named small"),
        ([SMALL.replace(task=ih.TaskConfig(n_train_classes=40))], "only 20 classes"),
        ([SMALL.replace(clamps=[clamps.AblateHeads(heads=["L2H0"])])], "no head L2H0"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(runs, words, tmp_path):
    good = SMALL.replace(name="good")
    with pytest.raises(ValueError, match=words):
        ih.train([good, *runs], tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_that_waits_for_a_missing_split_is_refused(tmp_path):
    all_classes = SMALL.replace(task=ih.TaskConfig(n_train_classes=20))
    waiting = clamps.from_level(split="test_exemplars", below=1.0)
    clamp = clamps.AblateHeads(heads=["L1H0"], schedule=waiting)
    with pytest.raises(ValueError, match=r"'test_exemplars', which these exemplars do not have"):
        ih.train(all_classes.replace(clamps=[clamp]), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_began_compiled_needs_its_compiler(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    state.record_engine(ih.Run(tmp_path / "small"), "compiled")
    monkeypatch.setattr(training_module, "compiler_found", lambda: False)
    with pytest.raises(ValueError, match="small began compiled, and there is no C"):
        ih.train(SMALL, tmp_path, progress=False)


def test_a_compiler_that_is_interrupted_is_not_one_that_fails(tmp_path, monkeypatch):
    def interrupted_while_compiling(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("the compiler was interrupted")

    monkeypatch.setattr(fleet_module, "traced_step", interrupted_while_compiling)
    with pytest.raises(KeyboardInterrupt):
        ih.train(SMALL, tmp_path, engine="compiled", progress=False)
    assert ih.Run(tmp_path / "small").engine == "compiled"


def fail_to_compile(*_, **__):
    raise RuntimeError("no compiler")


@pytest.fixture
def evaluating_by_graph(monkeypatch):
    """However seldom, as a trace that is not compiled."""
    monkeypatch.setattr(measure, "compile_graph", lambda graph, *example: graph)
    monkeypatch.setattr(measure, "WORTH_COMPILING", 0)
    monkeypatch.setattr(measure, "MIN_CHUNK", 1)


@pytest.mark.parametrize(
    ("module", "name"), [(fleet_module, "traced_step"), (measure, "compile_graph")]
)
def test_what_cannot_be_compiled_is_eager_as_a_whole(
    module, name, tmp_path, monkeypatch, evaluating_by_graph
):
    """Evaluations too, in a run that is left and resumed as in one that is not."""
    monkeypatch.setattr(fleet_module, "traced_step", lambda *_: fail_to_compile)
    monkeypatch.setattr(module, name, fail_to_compile)
    (plain,) = ih.train(SMALL, tmp_path / "plain", engine="eager", progress=False)
    with pytest.warns(UserWarning, match="no compiler"):
        (run,) = ih.train(SMALL, tmp_path / "fallen", engine="compiled", progress=False)
    assert run.engine == ih.Run(run.folder).engine == "eager"
    assert folder_bytes(run.folder) == folder_bytes(plain.folder)
    with pytest.warns(UserWarning, match="no compiler"):
        stop_after_an_update(tmp_path / "resumed", monkeypatch, engine="compiled")
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", engine="compiled", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(plain.folder)


def test_a_run_that_began_compiled_does_not_go_on_with_eager_evaluations(
    tmp_path, monkeypatch, evaluating_by_graph
):
    stop_after_an_update(tmp_path, monkeypatch)
    state.record_engine(ih.Run(tmp_path / "small"), "compiled")
    monkeypatch.setattr(fleet_module, "traced_step", lambda *_: fail_to_compile)
    monkeypatch.setattr(measure, "compile_graph", fail_to_compile)
    with pytest.raises(TrainingFailedError, match=r"small began .* go on so here \(no compiler\)"):
        ih.train(SMALL, tmp_path, progress=False)
    assert ih.Run(tmp_path / "small").engine == "compiled"


def test_a_copied_folder_is_its_own_run(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    shutil.copytree(tmp_path / "small", tmp_path / "other")
    runs = ih.train([SMALL, SMALL.replace(name="other")], tmp_path, progress=False)
    assert [(run.config.name, run.finished) for run in runs] == [("small", True), ("other", True)]


def test_metrics_that_were_lost_are_missed_before_training_goes_on(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    (tmp_path / "small" / store.METRICS).unlink()
    with pytest.raises(TrainingFailedError, match="lacks 1 of 1 evaluations"):
        ih.train(SMALL, tmp_path, progress=False)


@pytest.mark.parametrize("lost", ["checkpoints/00000008.safetensors", store.METRICS])
def test_what_a_finished_run_has_lost_comes_back(lost, tmp_path):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    before = folder_bytes(run.folder)
    assert lost in before
    (run.folder / lost).unlink()
    (again,) = ih.train(SMALL, tmp_path, progress=False)
    assert folder_bytes(again.folder) == before


def test_a_graft_is_bound_to_the_weights_that_it_reads(tmp_path):
    ih.train(SMALL, tmp_path, progress=False)
    graft = clamps.GraftIn(run=str(tmp_path / "small"), step=8, layer=0)
    (run,) = ih.train(SMALL.replace(name="grafted", clamps=[graft]), tmp_path, progress=False)
    (recorded,) = run.config.clamps
    assert recorded == graft.pinned()
    assert recorded.sha256 is not None


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(800, 800), (4_000, 2_000), (4_096, 1_024), (5_000, 1_250), (8_012, 1_603)],
)
def test_chunks_divide_the_sequences_or_the_last_is_filled_up(size, chunk):
    assert measure.chunk_size(size) == chunk


@pytest.mark.parametrize("max_chunk", [2_000, 35])
def test_a_graph_evaluates_as_the_model_does(max_chunk, tmp_path, monkeypatch, evaluating_by_graph):
    """In one chunk, in several, and with the last one filled up: three times 27 are 81."""
    monkeypatch.setattr(measure, "MAX_CHUNK", max_chunk)
    monkeypatch.setattr(measure, "MIN_CHUNK", 30)
    configs = [
        SMALL.replace(
            name=f"run-{head}-{n}",
            clamps=[
                clamps.InductionAttention(heads=[head], schedule=clamps.ramp(0, n)),
                clamps.PreviousTokenAttention(heads=["L0H2"], strength=n / 50),
            ],
            task=ih.TaskConfig(n_train_classes=8, n_test_classes=n_test),
            evaluation_size=size,
        )
        for head, n, n_test, size in (
            ("L1H3", 20, 4, 20),
            ("L1H6", 30, 10, 20),
            ("L1H7", 40, 4, 32),
        )
    ]
    assert len(fleets(configs, 8)) == 1
    fleet = make_fleet(tmp_path, configs)
    by_graph = measure.Evaluator(fleet.evaluator._model, compiled=True)
    for _ in range(3):
        fleet.advance()
    for place, run in enumerate(fleet.runs):
        plain = fleet.evaluator.measure(run, fleet.weights(place))
        found = by_graph.measure(run, fleet.weights(place))
        assert len(by_graph._graphs) == place + 1
        for split, values in plain.items():
            assert found[split] == pytest.approx(values, abs=1e-6)


def test_a_folder_of_another_run_is_refused(tmp_path):
    ih.train(SMALL, tmp_path, progress=False)
    other = SMALL.replace(seeds=Seeds(init=6))
    with pytest.raises(ValueError, match=r"holds another run: seeds is .*'init': 5.*'init': 6"):
        ih.train(other, tmp_path, progress=False)


def test_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ih.train(SMALL, tmp_path, progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=lambda: ih.train(SMALL, tmp_path, progress=False))
    thread.start()
    thread.join()
    assert ih.Run(tmp_path / "small").finished


def test_one_thread_leaves_nothing_behind(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = torch.get_num_threads(), dict(os.environ)
    with training_module.one_thread():
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), dict(os.environ)) == before


def test_random_state_is_not_touched(tmp_path):
    before = torch.get_rng_state()
    ih.train(SMALL, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "/home/user/.cache/ih_interp"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/ih_interp"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/mine"}, "/mine"),
    ],
)
def test_compiled_graphs_are_kept_where_they_last(given, expected):
    """Torch names a folder for temporary files in the variable as soon as it is imported."""
    script = (
        "import torch._inductor.config, ih_interp.tracing.forward as forward\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir\n"
        "from unittest.mock import patch\n"
        "with patch('os.makedirs'):\n"
        "    forward.use_lasting_cache(); print(cache_dir())"
    )
    kept = {
        n: v
        for n, v in os.environ.items()
        if n not in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**kept, "HOME": "/home/user", **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected
