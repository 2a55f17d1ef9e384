"""Files are replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from ih_interp.storage.atomic import as_path, write_atomic
from ih_interp.training.train import train


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_folders_are_made_and_content_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"first", b""):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(failing, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(
        *{"fsync": (os, "fsync", fail), "replace": (Path, "replace", fail)}[failing]
    )
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert names_in(tmp_path) == []


def test_no_link_is_written_through(tmp_path):
    """Neither at the file's place nor at that of its temporary file, which can be foreseen."""
    other = tmp_path / "thesis.tex"
    other.write_bytes(b"mine")
    for place in ("file", f".file.{os.getpid()}"):
        (tmp_path / place).symlink_to(other)
        write_atomic(tmp_path / "file", b"new")
        assert other.read_bytes() == b"mine"
        assert (tmp_path / "file").read_bytes() == b"new"
        assert names_in(tmp_path) == ["file", "thesis.tex"]


def test_a_folder_with_the_name_of_a_file_is_told_of(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="folder has the name of the file file; move it"):
        write_atomic(tmp_path / "file", b"new")
    assert names_in(tmp_path) == ["file"]


def test_a_path_with_what_a_shell_would_replace_is_refused(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    for path in ("$SCRATCH/runs", Path("${SCRATCH}/runs")):
        with pytest.raises(
            ValueError, match=r"name of a variable in it; write os\.path\.expandvars"
        ):
            as_path(path, "root")
    assert as_path("$no_such_variable", "root") == Path("$no_such_variable")
    with pytest.raises(ValueError, match="null character"):
        as_path("a\0b", "root")


@pytest.mark.parametrize("root", ["file", "file/below", "x" * 300, "a\0b"])
def test_a_root_that_cannot_be_is_refused_in_words(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a file; give a folder|no place for runs|null char"):
        train([], f"{tmp_path}/{root}")
