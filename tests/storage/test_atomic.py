"""Files are replaced whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from ih_interp.storage import atomic
from ih_interp.storage.atomic import Writer, as_path, write_atomic
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
    with pytest.raises(IsADirectoryError, match="folder"):
        write_atomic(tmp_path / "file", b"new")
    assert names_in(tmp_path) == ["file"]


def test_a_path_with_what_a_shell_would_replace_is_refused(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    for path in ("$SCRATCH/runs", Path("${SCRATCH}/runs")):
        with pytest.raises(ValueError, match="SCRATCH"):
            as_path(path, "root")
    assert as_path("$no_such_variable", "root") == Path("$no_such_variable")
    with pytest.raises(ValueError, match="null character"):
        as_path("a\0b", "root")


@pytest.mark.parametrize("root", ["file", "file/below", "x" * 300, "a\0b"])
def test_a_root_that_cannot_be_is_refused_in_words(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a file; give a folder|cannot hold runs|null char"):
        train([], f"{tmp_path}/{root}")


# Files that a thread writes


def test_files_are_there_once_settled(tmp_path):
    with Writer() as writer:
        for number in range(20):
            writer.write(tmp_path / "same", bytes([number]))
        writer.settle()
        assert (tmp_path / "same").read_bytes() == bytes([19])  # the last one given
        writer.write(tmp_path / "late", b"late")
    assert (tmp_path / "late").read_bytes() == b"late"


def test_writing_does_not_hold_up_who_asks(tmp_path, monkeypatch):
    may_write = threading.Event()
    write_atomic = atomic.write_atomic

    def slow(path, content, **options):
        assert may_write.wait(timeout=30)
        write_atomic(path, content, **options)

    monkeypatch.setattr(atomic, "write_atomic", slow)
    with Writer() as writer:
        writer.write(tmp_path / "file", b"content")
        assert not (tmp_path / "file").exists()
        may_write.set()
    assert (tmp_path / "file").read_bytes() == b"content"


def test_what_went_wrong_is_raised_where_it_is_waited_for(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")
    with pytest.raises(NotADirectoryError), Writer() as writer:
        writer.write(tmp_path / "taken" / "file", b"content")
    with Writer() as writer:
        writer.write(tmp_path / "taken" / "file", b"content")
        with pytest.raises(NotADirectoryError):
            writer.settle()
        writer.settle()  # told once


def test_an_interrupt_stays_one_where_the_disk_fails_too(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")

    def write_and_be_interrupted():
        with Writer() as writer:
            writer.write(tmp_path / "taken" / "file", b"content")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        write_and_be_interrupted()
    assert "files could not be written: [Errno 20]" in raised.value.__notes__[0]
