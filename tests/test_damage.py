"""Every kind of damage to every file: named with the remedy, and mended to the same bytes."""

import shutil

import pytest
from kills import folder_bytes, small_fleet

import ih_interp as ih
from ih_interp import store
from ih_interp.config import Seeds
from ih_interp.training import loop
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import TrainingFailedError, saved_step

CONFIG = small_fleet()[0]
FILES = (store.CONFIG, store.METRICS, store.STATE, "checkpoints/00000009.safetensors")


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
    if (name, kind) == (store.CONFIG, "foreign"):  # another run is never written over
        with pytest.raises(ValueError, match="holds another run: seeds is"):
            ih.train(CONFIG, tmp_path, progress=False, repair=True)
        return
    if (name, kind) == (store.STATE, "missing"):  # the one before it serves
        assert saved_step(tmp_path / CONFIG.name) == 13
    elif "checkpoints" in name and kind != "missing":  # read by those who need it
        with pytest.raises(ValueError, match=r"00000009\.safetensors .*repair=True"):
            ih.Run(tmp_path / CONFIG.name).model(9)
    else:
        with pytest.raises((ValueError, TrainingFailedError)) as told:
            ih.train(CONFIG, tmp_path, progress=False)
        assert path.name in str(told.value)
        assert "repair=True" in str(told.value)
    if (name, kind) != (store.STATE, "missing"):
        with pytest.warns(UserWarning, match="removed .*; trained again"):
            (run,) = ih.train(CONFIG, tmp_path, progress=False, repair=True)
    else:
        (run,) = ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert run.whole
    assert folder_bytes(tmp_path) == expected


def test_a_damaged_state_costs_as_much_as_lies_between_two(made, tmp_path, monkeypatch):
    root, _ = made
    folder = tmp_path / CONFIG.name
    shutil.copytree(root / "begun" / CONFIG.name, folder)
    flip(folder / store.STATE, None)
    begins, advance = [], Fleet.advance
    monkeypatch.setattr(
        Fleet, "advance", lambda fleet: begins.append(fleet.runs[0].step) or advance(fleet)
    )
    with pytest.warns(UserWarning, match=r"removed state\.safetensors"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert begins[0] == 13


@pytest.mark.parametrize("kind", ["flipped", "cut", "foreign"])
@pytest.mark.parametrize("name", [store.METRICS, "checkpoints/00000009.safetensors"])
def test_damage_to_a_finished_run_is_mended(name, kind, made, tmp_path):
    root, expected = made
    shutil.copytree(root / "straight", tmp_path / "runs")
    KINDS[kind](tmp_path / "runs" / CONFIG.name / name, root / "other" / CONFIG.name / name)
    with pytest.warns(UserWarning, match="removed .*; trained again"):
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
    flip(tmp_path / CONFIG.name / store.STATE, None)
    other = CONFIG.replace(name="sound", seeds=Seeds(init=9), sequences=8 * 4)
    with pytest.raises(TrainingFailedError, match=r"state\.safetensors"):
        ih.train([CONFIG, other], tmp_path, progress=False)
    assert ih.Run(tmp_path / "sound").whole
