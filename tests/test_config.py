import inspect

import pytest

from ih_interp.clamps import AblateHeads, during, parse
from ih_interp.config import Grid, RunConfig, Seeds, run_folder
from ih_interp.optimisers import Adam
from ih_interp.tasks.exemplars import Exemplars, FileSource
from ih_interp.tasks.few_shot import TaskConfig


def test_the_defaults_are_the_papers():
    config = RunConfig()
    assert (config.n_steps, config.batch_size) == (31_250, 32)
    assert config.optimiser == Adam(learning_rate=1e-5, beta1=0.9, beta2=0.999, eps=1e-8)
    assert config.seeds == Seeds(init=5, data=0, evaluation=1)


def test_json_both_ways():
    clamp = AblateHeads(heads=["L1H0"], schedule=during(10, 20))
    config = RunConfig(name="a", clamps=[clamp], seeds=Seeds(init=7), sequences=64)
    assert RunConfig.load(config.save()) == config


def test_grids_fall_on_the_first_update_with_enough_sequences():
    # 5,000 sequences are 156.25 batches of 32: the published code evaluates at 5,024.
    steps = Grid(every=5_000).steps(n_steps=31_250, batch_size=32)
    assert steps[:3] == [0, 157, 313]
    assert steps[-1] == 31_250
    assert len(steps) == 201


def test_logarithmic_grids_have_points_in_every_decade():
    steps = Grid(per_decade=2).steps(n_steps=1_000, batch_size=1)
    assert steps == [0, 1, 3, 10, 32, 100, 316, 1_000]
    both = Grid(every=400, per_decade=1).steps(n_steps=1_000, batch_size=1)
    assert both == [0, 1, 10, 100, 400, 800, 1_000]


def test_an_empty_grid_keeps_the_ends():
    assert Grid().steps(n_steps=7, batch_size=3) == [0, 7]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sequences": 100}, r"100 is not a whole number of batches of 32; 96 or 128 is"),
        ({"name": "../elsewhere"}, "name="),
        ({"name": ".hidden"}, "name="),
        ({"name": ""}, "name="),
        ({"sequences": 0}, "at least 1"),
        ({"optimiser": {"kind": "adam", "learning_rate": -1}}, "above 0"),
        ({"optimiser": {"kind": "adam", "learning_rate": float("nan")}}, "finite number"),
        ({"seeds": {"init": -1}}, "at least 0"),
        ({"clamps": [{"kind": "ablate_heads", "heads": ["H3"]}]}, "'H3' is not a head"),
        ({"clamps": [{"kind": "no_such"}]}, "no_such"),
        ({"batchsize": 3}, "batchsize"),
    ],
)
def test_what_cannot_be_run_cannot_be_built(fields, words):
    with pytest.raises(ValueError, match=words):
        RunConfig.load(fields)


def test_the_fingerprint_knows_everything_but_name_and_place():
    config = RunConfig(task=TaskConfig(exemplars=FileSource(path="a.h5", dataset="d", sha256="0")))
    moved = config.replace(
        name="other", task=TaskConfig(exemplars=FileSource(path="b/a.h5", dataset="d", sha256="0"))
    )
    assert moved.fingerprint == config.fingerprint
    assert config.replace(seeds=Seeds(init=6)).fingerprint != config.fingerprint
    changed = config.task.exemplars.model_copy(update={"sha256": "1"})
    assert config.replace(task=TaskConfig(exemplars=changed)).fingerprint != config.fingerprint


def test_a_run_lies_under_its_name(tmp_path):
    assert run_folder(tmp_path, RunConfig(name="main-5")) == tmp_path / "main-5"


def test_exemplars_are_recorded_as_their_source(exemplars, tmp_path):
    config = RunConfig(task=TaskConfig(exemplars=exemplars))
    assert config == RunConfig(task=TaskConfig(exemplars=exemplars.source))
    assert RunConfig.load(config.save()) == config
    saved = exemplars.save(tmp_path / "features.npz")
    assert config.task.replace(exemplars=saved).exemplars == saved.source


def test_exemplars_that_cannot_be_had_again_are_refused(exemplars):
    with pytest.raises(ValueError, match=r"no source that a run could record; save them first"):
        TaskConfig(exemplars=Exemplars(exemplars.features))
    with pytest.raises(ValueError, match="not those of their source"):
        TaskConfig(exemplars=Exemplars(2 * exemplars.features, exemplars.source))


@pytest.mark.parametrize(
    "alone", [{"kind": "ablate_heads", "heads": ["L1H0"]}, AblateHeads(heads=["L1H0"])]
)
def test_one_clamp_is_no_list_of_clamps_of_a_run(alone):
    for build in (lambda: RunConfig(clamps=alone), lambda: RunConfig().replace(clamps=alone)):
        with pytest.raises(ValueError, match=r"clamps="):
            build()


def test_lists_and_functions_among_the_clamps_of_a_run_are_told_in_words():
    with pytest.raises(ValueError, match="list"):
        RunConfig(clamps=[[AblateHeads(heads=["L1H0"])]])
    with pytest.raises(ValueError, match="function"):
        RunConfig(clamps=[AblateHeads])


def test_exemplars_and_schedules_are_told_from_others():
    with pytest.raises(ValueError, match="exemplars=0"):
        TaskConfig(exemplars=0)
    with pytest.raises(ValueError, match=r"schedule=\(0, 100\)"):
        AblateHeads(heads=["L1H0"], schedule=(0, 100))


@pytest.mark.parametrize(
    "alone", [{"kind": "ablate_heads", "heads": ["L1H0"]}, AblateHeads(heads=["L1H0"])]
)
def test_one_clamp_is_no_list_of_clamps(alone):
    with pytest.raises(ValueError, match=r"reads a list of clamps and one came alone; write \["):
        inspect.unwrap(parse)(alone)  # past the type checker, which only tests have
