"""Every kind of damage to every file: named with the remedy, and mended to the same bytes."""

import shutil

import pytest
import torch
from kills import folder_bytes, small_fleet
from safetensors.torch import save_file

import ih_interp as ih
from ih_interp.config import Seeds
from ih_interp.storage import run_files
from ih_interp.training import loop
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import TrainingFailedError, saved_step

pytestmark = pytest.mark.slow

CONFIG = small_fleet()[0]
FILES = (run_files.CONFIG, run_files.METRICS, run_files.STATE, "checkpoints/00000009.safetensors")


def flip(path, foreign):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def cut(path, foreign):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def lose(path, foreign):
    path.unlink()


def replace(path, foreign):
    shutil.copy(foreign, path)


KINDS = {"flipped": flip, "cut": cut, "missing": lose, "foreign": replace}


def begun(root, config, until=14):
    """A run of 40 updates that ended with states saved at 13 and 14, as by a kill."""
    advance = Fleet.advance

    def stop(fleet):
        if fleet.runs[0].step == until:
            raise RuntimeError("killed")
        return advance(fleet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(Fleet, "advance", stop)
        with pytest.raises(TrainingFailedError, match="killed"):
            ih.train(config, root, progress=False)
    return root / config.name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run's files, a begun run, and one of another seed."""
    root = tmp_path_factory.mktemp("made")
    ih.train(CONFIG, root / "straight", progress=False)
    other = CONFIG.replace(seeds=Seeds(init=8))
    begun(root / "begun", CONFIG)
    begun(root / "other", other)
    return root, folder_bytes(root / "straight")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_a_begun_run_is_named_and_mended(name, kind, made, tmp_path):
    root, expected = made
    shutil.copytree(root / "begun" / CONFIG.name, tmp_path / CONFIG.name)
    path = tmp_path / CONFIG.name / name
    assert saved_step(tmp_path / CONFIG.name) == 14
    KINDS[kind](path, root / "other" / CONFIG.name / name)
    if (name, kind) == (run_files.CONFIG, "foreign"):  # another run is never written over
        with pytest.raises(ValueError, match="holds another run: seeds is"):
            ih.train(CONFIG, tmp_path, progress=False, repair=True)
        return
    if (name, kind) == (run_files.STATE, "missing"):  # the one before it serves
        assert saved_step(tmp_path / CONFIG.name) == 13
    elif "checkpoints" in name and kind != "missing":  # read by those who need it
        with pytest.raises(ValueError, match=r"00000009\.safetensors .*repair=True"):
            ih.Run(tmp_path / CONFIG.name).model(9)
    else:
        with pytest.raises((ValueError, TrainingFailedError)) as told:
            ih.train(CONFIG, tmp_path, progress=False)
        assert path.name in str(told.value)
        assert "repair=True" in str(told.value)
    if (name, kind) != (run_files.STATE, "missing"):
        with pytest.warns(UserWarning, match="removed"):
            (run,) = ih.train(CONFIG, tmp_path, progress=False, repair=True)
    else:
        (run,) = ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert run.whole
    assert folder_bytes(tmp_path) == expected


def test_a_damaged_state_costs_as_much_as_lies_between_two(made, tmp_path, monkeypatch):
    root, _ = made
    folder = tmp_path / CONFIG.name
    shutil.copytree(root / "begun" / CONFIG.name, folder)
    flip(folder / run_files.STATE, None)
    begins, advance = [], Fleet.advance
    monkeypatch.setattr(
        Fleet, "advance", lambda fleet: begins.append(fleet.runs[0].step) or advance(fleet)
    )
    with pytest.warns(UserWarning, match=r"removed.*state\.safetensors"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert begins[0] == 13


@pytest.mark.parametrize("kind", ["flipped", "cut", "foreign"])
@pytest.mark.parametrize("name", [run_files.METRICS, "checkpoints/00000009.safetensors"])
def test_damage_to_a_finished_run_is_mended(name, kind, made, tmp_path):
    root, expected = made
    shutil.copytree(root / "straight", tmp_path / "runs")
    KINDS[kind](tmp_path / "runs" / CONFIG.name / name, root / "other" / CONFIG.name / name)
    with pytest.warns(UserWarning, match="removed"):
        ih.train(CONFIG, tmp_path / "runs", progress=False, repair=True)
    assert folder_bytes(tmp_path / "runs") == expected


def test_repair_of_a_sound_run_changes_nothing(made, tmp_path, monkeypatch):
    root, expected = made
    shutil.copytree(root / "straight", tmp_path / "runs")
    monkeypatch.setattr(Fleet, "advance", lambda fleet: pytest.fail("trained again"))
    ih.train(CONFIG, tmp_path / "runs", progress=False, repair=True)
    assert folder_bytes(tmp_path / "runs") == expected


def test_a_damaged_run_does_not_hold_up_the_others(made, tmp_path):
    root, _ = made
    shutil.copytree(root / "begun" / CONFIG.name, tmp_path / CONFIG.name)
    flip(tmp_path / CONFIG.name / run_files.STATE, None)
    other = CONFIG.replace(name="sound", seeds=Seeds(init=9), sequences=8 * 4)
    with pytest.raises(TrainingFailedError, match=r"state\.safetensors"):
        ih.train([CONFIG, other], tmp_path, progress=False)
    assert ih.Run(tmp_path / "sound").whole


def resealed(path, **changes):
    """A configuration with other fields, and the digest that belongs to them."""
    recorded = {**run_files.read_json(path), **changes}
    run_files.write_json(path, run_files.sealed(recorded))


STRANGE = {"kind": "sink_attention", "heads": ["L0H3"]}
OF_ANOTHER_VERSION = {
    "one more field": lambda path, run: resealed(path, colour="blue"),
    "clamps not known here": lambda path, run: resealed(path, run={**run, "clamps": [STRANGE]}),
    "a field of the run not known here": lambda path, run: resealed(path, run={**run, "x": 1}),
    "another engine": lambda path, run: resealed(path, engine="gpu"),
    "versions that are a list": lambda path, run: resealed(path, versions=["2.0"]),
    "another format": lambda path, run: resealed(path, format=run_files.FORMAT + 1),
    "another format, sealed otherwise": lambda path, run: run_files.write_json(
        path, {**run_files.read_json(path), "format": run_files.FORMAT + 1}
    ),
    "another fingerprint": lambda path, run: resealed(path, fingerprint="0" * 12),
}


@pytest.mark.parametrize("kind", OF_ANOTHER_VERSION)
def test_what_another_version_wrote_is_left_alone_by_all_advice_and_by_repair(kind, made, tmp_path):
    root, _ = made
    folder = tmp_path / CONFIG.name
    shutil.copytree(root / "begun" / CONFIG.name, folder)
    path = folder / run_files.CONFIG
    OF_ANOTHER_VERSION[kind](path, run_files.read_json(path)["run"])
    before = folder_bytes(tmp_path)
    for read in (
        lambda: ih.Run(folder),
        lambda: ih.train(CONFIG, tmp_path, progress=False),
        lambda: ih.train(CONFIG, tmp_path, progress=False, repair=True),
    ):
        with pytest.raises(ValueError, match=r"config\.json") as refusal:
            read()
        assert not isinstance(refusal.value, run_files.DamagedFileError)
        assert "repair" not in str(refusal.value)
        assert "delete" not in str(refusal.value)
    assert folder_bytes(tmp_path) == before


def test_repair_removes_only_what_we_wrote(made, tmp_path):
    """Though it begins the run anew."""
    root, expected = made
    folder = tmp_path / CONFIG.name
    shutil.copytree(root / "begun" / CONFIG.name, folder)
    cut(folder / run_files.CONFIG, None)
    kept = [
        folder / "checkpoints" / "best.safetensors",
        folder / "checkpoints" / "00000009.safetensors.bak",
        folder / "notes.json",
    ]
    for path in kept:
        path.write_bytes(b"mine")
    with pytest.warns(UserWarning, match="removed"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert all(path.read_bytes() == b"mine" for path in kept)
    for path in kept:
        path.unlink()
    assert folder_bytes(tmp_path) == expected


def as_bfloat16(path):
    tensors = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    save_file(tensors, path, metadata={"ih_interp": '{"facts": {}, "sha256": ""}'})


def of_other_tensors(path):
    """Of wrong types, under this run's name and a right digest."""
    tensors, facts = run_files.load_tensors(path)
    run_files.save_tensors(path, {name: tensor.double() for name, tensor in tensors.items()}, facts)


def at_another_step(path):
    tensors, facts = run_files.load_tensors(path)
    run_files.save_tensors(path, tensors, {**facts, "step": "14"})


@pytest.mark.parametrize("name", [run_files.STATE, "checkpoints/00000009.safetensors"])
@pytest.mark.parametrize("damage", [as_bfloat16, of_other_tensors, at_another_step])
def test_tensors_of_other_kinds_are_refused_and_mended(damage, name, made, tmp_path):
    root, expected = made
    shutil.copytree(root / "begun" / CONFIG.name, tmp_path / CONFIG.name)
    damage(tmp_path / CONFIG.name / name)
    read = ih.Run(tmp_path / CONFIG.name).model
    if name == run_files.STATE:
        read = lambda _: ih.train(CONFIG, tmp_path, progress=False)  # noqa: E731
    with pytest.raises((ValueError, TrainingFailedError), match=r"\.safetensors .*repair=True"):
        read(9)
    with pytest.warns(UserWarning, match="removed"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert folder_bytes(tmp_path) == expected


def test_a_state_of_another_model_is_refused(made, tmp_path):
    root, _ = made
    path = tmp_path / CONFIG.name / run_files.STATE
    shutil.copytree(root / "begun" / CONFIG.name, path.parent)
    tensors, facts = run_files.load_tensors(path)
    run_files.save_tensors(path, {name: tensor[:1] for name, tensor in tensors.items()}, facts)
    with pytest.raises(TrainingFailedError, match=r"state\.safetensors"):
        ih.train(CONFIG, tmp_path, progress=False)


@pytest.mark.parametrize(
    "name", [run_files.CONFIG, run_files.METRICS, "checkpoints/00000009.safetensors"]
)
def test_a_folder_with_a_files_name_is_told_of(name, made, tmp_path):
    root, _ = made
    path = tmp_path / CONFIG.name / name
    shutil.copytree(root / "begun" / CONFIG.name, tmp_path / CONFIG.name)
    path.unlink()
    path.mkdir()
    before = folder_bytes(tmp_path)
    for repair in (False, True):
        with pytest.raises((ValueError, OSError, TrainingFailedError)) as told:
            ih.train(CONFIG, tmp_path, progress=False, repair=repair)
        assert path.name in str(told.value) or path.parent.name in str(told.value)
    assert path.is_dir()
    assert folder_bytes(tmp_path) == before
