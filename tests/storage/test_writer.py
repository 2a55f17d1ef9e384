import threading

import pytest

from ih_interp.storage import atomic
from ih_interp.storage.atomic import Writer


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
