import inspect
import json
import shutil

import pytest
import torch
from small_runs import FOUR_UPDATES
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.config import Grid, RunConfig
from ih_interp.runs import create_run
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import FileSource, GaussianSource

CONFIG = RunConfig(
    name="run",
    task=ih.TaskConfig(
        exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16), n_train_classes=8
    ),
    sequences=32,
    batch_size=8,
    evaluations=Grid(every=16),
    evaluation_size=10,
    checkpoints=Grid(every=16),
)


@pytest.fixture
def run(tmp_path):
    return ih.train(CONFIG, tmp_path, progress=False)[0]


def test_a_checkpoint_is_the_model_at_that_step(run):
    untrained = ih.build_model(run.task, CONFIG.model, seed=CONFIG.seeds.init)
    tokens = run.task.enumerate("train").tokens[:7]
    assert_close(run.model(0)(tokens), untrained(tokens), rtol=0, atol=0)
    assert not torch.equal(run.model()(tokens), untrained(tokens))
    assert torch.equal(run.model()(tokens), run.model(4)(tokens))


def test_evaluating_a_checkpoint_gives_the_recorded_metrics(run):
    from ih_interp.evaluation import evaluation_sets

    sets = evaluation_sets(run.task, run.config)
    for step in run.steps:
        for split, batch in sets.items():
            (recorded,) = run.metrics.query(f"step == {step} and split == '{split}'").to_dict(
                "records"
            )
            found = ih.evaluate(run.model(step), batch).mean()
            assert found == pytest.approx({name: recorded[name] for name in found}, abs=1e-6)


def test_there_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ih.Run(tmp_path)


def test_there_is_no_such_step(run):
    for step in (2.0, "last", True):
        with pytest.raises(TypeError, match=r"run\.steps"):
            inspect.unwrap(type(run).model)(run, step)
    with pytest.raises(ValueError, match=r"has no checkpoint at step 3; it has \[0, 2, 4\]"):
        run.model(3)


def resealed(text, old, new):
    """A configuration with something else in it, and the digest of that."""
    changed = json.loads(text.replace(old, new))
    return json.dumps(run_files.sealed(changed), indent=2, sort_keys=True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON, it may be cut short"),
        (
            lambda text: resealed(text, '"format": 2', '"format": 99'),
            "has format 99; this version reads 2",
        ),
        (
            lambda text: resealed(text, '"sequences": 32', '"sequences": 33'),
            "not a whole number of batches",
        ),
        (lambda text: "[1, 2]", "a JSON object was expected"),
        (lambda text: '{"format": 2}', "digest"),
        (
            lambda text: resealed(text, '"batch_size": 8', '"batch_size": 16'),
            "cannot be read here: the run in it is",
        ),
        (
            lambda text: text.replace('"engine": "eager"', '"engine": "eages"'),
            "was changed after it was written: its digest differs; restore it, or train again",
        ),
        (
            lambda text: text.replace('"format": 2', '"format": 1'),
            "has format 1; this version reads 2",
        ),
    ],
)
def test_a_damaged_configuration_is_named(run, damage, words):
    path = run.folder / run_files.CONFIG
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=words):
        ih.Run(run.folder)


def test_a_damaged_checkpoint_is_named(run):
    path = run_files.checkpoint_path(run.folder, 4)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"00000004\.safetensors.*digest"):
        run.model(4)
    path.write_bytes(bytes(content[:-100]))
    with pytest.raises(ValueError, match=r"00000004\.safetensors.* cut short"):
        run.model(4)


def test_a_checkpoint_from_another_run_is_refused(run, tmp_path):
    other = CONFIG.replace(seeds=ih.RunConfig().seeds.model_copy(update={"init": 6}))
    (stranger,) = ih.train(other, tmp_path / "other", progress=False)
    path = run_files.checkpoint_path(run.folder, 4)
    path.write_bytes(run_files.checkpoint_path(stranger.folder, 4).read_bytes())
    with pytest.raises(ValueError, match="belongs to run"):
        run.model(4)


def test_features_that_changed_are_refused(tmp_path):
    import numpy as np

    path = tmp_path / "features.npz"
    exemplars = ih.Exemplars.gaussian(n_classes=20, n_exemplars=2, n_features=16).save(path)
    config = CONFIG.replace(task=CONFIG.task.replace(exemplars=exemplars))
    (run,) = ih.train(config, tmp_path / "runs", progress=False)
    assert ih.Run(run.folder).task.exemplars.sha256 == exemplars.sha256
    np.savez(path, features=exemplars.features.numpy() + 1)
    with pytest.raises(ValueError, match="other features"):
        ih.Run(run.folder).task  # noqa: B018
    (again,) = ih.train(CONFIG, tmp_path / "others", progress=False)
    path = again.folder / run_files.CONFIG
    recorded = run_files.read_json(path)
    run_files.write_json(path, run_files.sealed({**recorded, "features_sha256": "0" * 64}))
    # As where another version of torch draws other features from the same seed.
    with pytest.raises(ValueError, match="other features"):
        ih.Run(again.folder).task  # noqa: B018


@pytest.fixture
def of_file(tmp_path):
    """A run on features from `features.npz`, and those features."""
    made = ih.Exemplars.gaussian(n_classes=20, n_exemplars=2, n_features=16, seed=3)
    exemplars = made.save(tmp_path / "features.npz")
    config = CONFIG.replace(task=CONFIG.task.replace(exemplars=exemplars))
    return ih.train(config, tmp_path / "runs", progress=False)[0], exemplars


def test_a_run_opens_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ih.Exemplars.gaussian(n_classes=20, n_exemplars=2, n_features=16, seed=3)
    config = CONFIG.replace(task=CONFIG.task.replace(exemplars=made.save("features.npz")))
    (run,) = ih.train(config, tmp_path / "runs", progress=False)
    monkeypatch.chdir("/")
    assert ih.Run(run.folder).task.exemplars.sha256 == made.sha256


def test_features_that_moved_can_be_handed_in(of_file, tmp_path):
    run, exemplars = of_file
    moved = tmp_path / "elsewhere.npz"
    (tmp_path / "features.npz").rename(moved)
    words = r"trained on features that are no longer there: .*features\.npz.* Run\(folder, exempl"
    with pytest.raises(FileNotFoundError, match=words):
        ih.Run(run.folder).model()
    opened = ih.Run(run.folder, exemplars=ih.Exemplars.load(moved))
    assert torch.equal(opened.model().W_E, run.model().W_E)
    others = ih.Exemplars(exemplars.features + 1)
    with pytest.raises(ValueError, match="other features"):
        ih.Run(run.folder, exemplars=others)


def test_training_again_records_where_the_features_are_now(of_file, tmp_path):
    run, exemplars = of_file
    before = (run.folder / run_files.CONFIG).read_text()
    moved = tmp_path / "new" / "place.npz"
    moved.parent.mkdir()
    (tmp_path / "features.npz").rename(moved)
    config = run.config.replace(task=run.config.task.replace(exemplars=ih.Exemplars.load(moved)))
    (again,) = ih.train(config, tmp_path / "runs", progress=False)
    assert again.config.task.exemplars.path == str(moved.resolve())
    opened = ih.Run(run.folder)
    assert opened.task.exemplars.sha256 == exemplars.sha256
    assert opened.finished
    after = (run.folder / run_files.CONFIG).read_text()
    old, new = str((tmp_path / "features.npz").resolve()), str(moved.resolve())
    assert json.loads(after) == json.loads(resealed(before, old, new))


def test_a_run_does_not_go_on_with_other_features(of_file, tmp_path):
    """Whoever wrote the configuration by hand: the digest in it need not be the features'."""
    run, exemplars = of_file
    task = ih.FewShotTask(ih.Exemplars(exemplars.features + 1), run.config.task)
    with pytest.raises(ValueError, match="other features"):
        create_run(run.folder, run.config, task, engine="eager")


def test_only_the_place_of_features_may_differ(of_file, tmp_path):
    run, exemplars = of_file
    other = ih.Exemplars(exemplars.features + 1).save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"task is .* there and .* here"):
        ih.train(
            run.config.replace(task=run.config.task.replace(exemplars=other)),
            tmp_path / "runs",
            progress=False,
        )
    elsewhere = FileSource(**{**exemplars.source.model_dump(), "path": str(tmp_path / "b.npz")})
    shutil.copy(tmp_path / "features.npz", tmp_path / "b.npz")
    longer = run.config.replace(task=run.config.task.replace(exemplars=elsewhere), sequences=64)
    with pytest.raises(ValueError, match="batch_size is 8 there and 16 here"):
        ih.train(longer.replace(batch_size=16), tmp_path / "runs", progress=False)
    assert ih.train(longer, tmp_path / "runs", progress=False)[0].config == longer


def test_a_run_records_what_its_numbers_may_depend_on(run):
    recorded = json.loads((run.folder / run_files.CONFIG).read_text())
    assert recorded["threads"] == 1
    assert recorded["engine"] == "eager"
    assert {"torch", "transformer-lens", "python"} <= set(recorded["versions"])
    assert recorded["features_sha256"] == run.task.exemplars.sha256


def test_metrics_that_are_gone_or_cut_are_refused(run):
    path = run.folder / run_files.METRICS
    rows = run_files.read_metrics(run.folder)
    run_files.write_metrics(run.folder, [row for row in rows if row["step"] != 2])
    with pytest.raises(ValueError, match="1 of 3 evaluations, the first at step 2"):
        run.metrics  # noqa: B018
    path.unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl lacks 3 of 3 evaluations"):
        run.metrics  # noqa: B018


def test_a_run_that_has_not_begun_has_no_metrics_and_no_model(tmp_path, task):
    config = CONFIG.replace(task=task.config)
    run = create_run(tmp_path / "run", config, task, engine="eager")
    assert list(run.metrics.columns[:5]) == ["step", "sequences", "split", "under", "loss"]
    assert (len(run.metrics), run.steps, run.finished) == (0, [], False)
    with pytest.raises(ValueError, match="no checkpoints"):
        run.model()


def test_an_empty_table_of_metrics_has_the_columns_of_a_full_one(run, tmp_path, task):
    config = CONFIG.replace(task=task.config)
    empty = create_run(tmp_path / "empty", config, task, engine="eager").metrics
    assert list(empty.columns) == list(run.metrics.columns)


def test_a_checkpoint_of_another_step_is_refused(run):
    first, last = (run_files.checkpoint_path(run.folder, step) for step in (2, 4))
    last.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"belongs to run .* at step 2, not to .* at step 4"):
        run.model(4)


def test_files_that_are_no_checkpoints_are_no_steps(run):
    shutil.copy(
        run_files.checkpoint_path(run.folder, 4),
        run.folder / run_files.CHECKPOINTS / "3.safetensors",
    )
    assert run.steps == [0, 2, 4]


def test_weights_go_into_a_model_of_their_shape_only(run):
    for shape in (ih.ModelConfig(n_layers=1), ih.ModelConfig(n_layers=3), ih.ModelConfig(d_head=4)):
        with pytest.raises(ValueError, match="another model"):
            run.load_weights(ih.build_model(run.task, shape), 4)


def test_loading_weights_leaves_nothing_of_the_model_before(run):
    model = run.model(0).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(7.0)
    run.load_weights(model, 4)
    expected = dict(run.model(4).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("left", [run_files.METRICS, run_files.CHECKPOINTS])
def test_what_is_left_of_another_run_is_not_taken_over(run, left, tmp_path):
    """The checkpoints would have counted as this run's, and its metrics been read as its own."""
    (run.folder / run_files.CONFIG).unlink()
    for name in {run_files.METRICS, run_files.CHECKPOINTS, run_files.STATE} - {left}:
        path = run.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        ValueError, match=rf"holds {left} and no config\.json that says of which run"
    ):
        ih.train(CONFIG, tmp_path, progress=False)


@pytest.mark.parametrize("given", [False, True])
def test_a_runs_features_changed_in_place_are_refused(run, given):
    """The network was trained on what they were."""
    exemplars = CONFIG.task.build().exemplars
    again = ih.Run(run.folder, exemplars if given else None)
    expected = again.model()
    array = again.task.exemplars.features.numpy()
    array *= 2
    with pytest.raises(ValueError, match="other features"):
        again.model()
    array /= 2
    assert torch.equal(again.model().embed.features, expected.embed.features)


def test_the_checkpoints_there_are_are_not_all_told(run):
    for step in range(100, 400):
        run_files.checkpoint_path(run.folder, step).touch()
    with pytest.raises(
        ValueError, match=r"no checkpoint at step 3; it has \[0, 2, 4, .*303 in all"
    ):
        run.model(3)


class Place:
    """An `os.PathLike` of somebody else's."""

    def __init__(self, path):
        self._path = str(path)

    def __fspath__(self):
        return self._path


def test_a_run_stays_where_it_was_opened_wherever_the_process_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run,) = ih.train(FOUR_UPDATES, "runs", progress=False)
    seen = (len(run.metrics), run.steps)
    (tmp_path / "link").symlink_to("runs/small")
    opened = ih.Run(Place("link"))
    monkeypatch.chdir("/")
    assert (len(run.metrics), run.steps) == seen == (len(opened.metrics), opened.steps)


def test_the_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (run,) = ih.train(FOUR_UPDATES, Place("~/runs"), progress=False)
    assert run.folder == tmp_path / "home" / "runs" / "small"
    assert ih.Run("~/runs/small").steps == run.steps
    ih.Exemplars.gaussian(4, 2, 8).save("~/features.npz")
    assert ih.Exemplars.load("~/features.npz").n_classes == 4
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    with pytest.raises(ValueError, match="instead of ~"):
        ih.Run("~nobody-of-this-name/runs")


def test_a_run_that_is_no_longer_there_is_refused_in_words(tmp_path):
    (run,) = ih.train(FOUR_UPDATES, tmp_path, progress=False)
    run.folder.rename(tmp_path / "elsewhere")
    for read in (lambda: run.metrics, lambda: run.steps, lambda: run.finished, run.model):
        with pytest.raises(FileNotFoundError, match=r"no run at .*small any more"):
            read()
    assert "no longer there" in repr(run)


def test_features_changed_before_they_are_given_to_a_run_are_refused(run):
    exemplars = CONFIG.task.build().exemplars
    ih.Run(run.folder, exemplars)  # which has looked at them
    exemplars.features.mul_(2)
    with pytest.raises(ValueError, match="other features"):
        ih.Run(run.folder, exemplars)
