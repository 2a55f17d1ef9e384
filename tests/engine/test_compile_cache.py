"""Where compiled graphs are kept, and what becomes of damaged ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import clear_caches

from ih_interp.engine import compile_cache
from ih_interp.engine.compile_cache import VARIABLE, with_lasting_cache
from ih_interp.engine.compiled_forward import compile_graph, compiler_found, traced


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user whose home, and temporary folder, are empty."""
    tmp_path.chmod(0o700)
    (tmp_path / "temporary").mkdir(mode=0o700)
    for name in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compile_cache.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    compile_cache._of_this_process.cache_clear()
    return tmp_path / "home"


def place():
    """Where compiling happens now."""
    return with_lasting_cache(lambda: Path(os.environ[VARIABLE]))


def test_it_is_in_the_cache_of_the_user_and_private(home, monkeypatch):
    umask = os.umask(0)
    try:
        assert place() == home / ".cache" / "ih_interp"
    finally:
        os.umask(umask)
    assert (home / ".cache" / "ih_interp").stat().st_mode & 0o777 == 0o700
    assert VARIABLE not in os.environ  # what the user compiles goes where it went
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "other"))
    assert place() == home / "other" / "ih_interp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert place() == home / ".cache" / "ih_interp"


def test_a_place_of_the_users_choice_is_left_alone(home, monkeypatch):
    chosen = home / "mine $1"
    monkeypatch.setenv(VARIABLE, str(chosen))
    assert place() == chosen
    assert not chosen.exists()


@pytest.mark.parametrize("name", ["my home", "a;b", "a'b", 'a"b', "$a", "a\nb", "a(b", b"\xff"])
def test_a_path_that_a_command_line_does_not_take_is_passed_over(name, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / os.fsdecode(name)))
    assert place() == home.parent / "temporary" / f"ih_interp-{os.getuid()}"
    assert not home.exists()


def test_a_user_without_a_home_has_a_temporary_place(home, monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compile_cache.Path, "home", none)
    assert place() == home.parent / "temporary" / f"ih_interp-{os.getuid()}"


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o770])
@pytest.mark.parametrize("which", [".cache/ih_interp", ".cache"])
def test_where_others_can_write_nothing_is_kept(mode, which, home, monkeypatch):
    monkeypatch.setattr(compile_cache.os, "getgid", lambda: 12345)  # a group with other members
    folder = home / ".cache" / "ih_interp"
    folder.mkdir(parents=True)
    (home / which).chmod(mode)
    with pytest.warns(UserWarning, match="others can write"):
        assert home not in place().parents
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_what_belongs_to_another_is_left_aside(home):
    folder = home / ".cache" / "ih_interp"
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert home not in place().parents


def test_a_link_among_temporary_files_is_not_followed(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "a b"))
    temporary = home.parent / "temporary"
    home.mkdir()
    (temporary / f"ih_interp-{os.getuid()}").symlink_to(home)
    with pytest.warns(UserWarning, match="is a link"):
        assert place() != home


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
@pytest.mark.parametrize("kept", [0.0, 0.5])
@pytest.mark.parametrize("suffixes", [(".so",), (".py", ".cpp", ".h")])
@pytest.mark.filterwarnings("ignore:Compiled graphs kept")
def test_damaged_entries_are_made_anew(kept, suffixes, home):
    def doubled(x):
        return (x * torch.arange(3.0)).exp().sum(0)

    x = torch.ones(2, 3)
    expected = compile_graph(traced(doubled, x), x)(x)
    for path in (home / ".cache" / "ih_interp").rglob("*"):
        if path.suffix in suffixes:
            content = path.read_bytes()
            path.unlink()  # it is in use by this process
            path.write_bytes(content[: int(len(content) * kept)])
    clear_caches()  # torch remembers what it has loaded
    assert torch.equal(compile_graph(traced(doubled, x), x)(x), expected)
    assert [path.name for path in (home / ".cache").iterdir()] == ["ih_interp"]


@pytest.mark.slow
def test_what_cannot_be_compiled_is_told_as_it_is(home):
    def fail():
        raise RuntimeError("no such operation")

    (home / ".cache" / "ih_interp").mkdir(parents=True, mode=0o700)
    (home / ".cache" / "ih_interp" / "entry").touch()
    with pytest.raises(RuntimeError, match="no such operation"):
        with_lasting_cache(fail)


@pytest.mark.slow
def test_eager_training_asks_for_no_home_and_makes_no_folder(tmp_path):
    script = (
        "import ih_interp as ih, pathlib\n"
        "def none(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = none\n"
        "ih.train(ih.RunConfig(sequences=64,\n"
        "    task=ih.TaskConfig(\n"
        "    exemplars=ih.Exemplars.gaussian(12, 2, 16), n_train_classes=8),\n"
        "    batch_size=8, evaluation_size=8),\n"
        f"    {str(tmp_path / 'runs')!r}, engine='eager', progress=False)\n"
    )
    environment = {n: v for n, v in os.environ.items() if n not in (VARIABLE, "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=environment, check=True)
    assert not (tmp_path / "home").exists()
