"""Files made to run code, read other files or fill the memory; and files that are damaged."""

import io
import json
import pickle
import resource
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from published_files import OPTIONS, SHAPE, as_bytes, leaves, random_model

import ih_interp as ih
from ih_interp.config import RunConfig, run_folder
from ih_interp.interop.icl_dynamics import read_icl_dynamics_log
from ih_interp.storage import run_files

SECRET = np.full((2, 2, 3), 42.0, dtype=np.float32)
HUGE = 10**12
ROOM = 2**26


class Explosive:
    """Unpickling it would fail the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.fixture(autouse=True)
def little_memory():
    """A file that is refused takes less than 64 MiB, and the address space has no terabyte."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**31, before[1]))
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert peak < ROOM


def refused(path, words, **options):
    with pytest.raises(ValueError, match=words) as refusal:
        ih.Exemplars.load(path, **options)
    assert path.name in str(refusal.value)


def npy(descr, shape):
    """A header of numpy's, and 64 bytes of data, whatever it declares."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(64)


# Code from data


def test_pickled_objects_are_not_loaded(tmp_path, task):
    objects = np.empty((1, 1, 1), dtype=object)
    objects[0, 0, 0] = Explosive()
    np.savez(tmp_path / "objects.npz", features=objects)
    np.savez_compressed(tmp_path / "packed.npz", features=objects)
    for name in ("objects.npz", "packed.npz"):
        refused(tmp_path / name, "Python objects")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Explosive()))
    (tmp_path / "raw.h5").write_bytes(pickle.dumps(Explosive()))
    refused(tmp_path / "raw.npz", "cannot be read")
    refused(tmp_path / "raw.h5", "cannot be read")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(OPTIONS))
    for number, content in enumerate((as_bytes(objects), pickle.dumps(Explosive()))):
        path = tmp_path / f"{number}.eqx"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{number}\.eqx is no \.eqx file"):
            ih.load_icl_dynamics(path, config, task)


def test_a_pickle_is_no_checkpoint(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        path = tmp_path / name
        if name[0] == "a":
            path.write_bytes(pickle.dumps(Explosive()))
        else:
            torch.save({"w": torch.zeros(1)}, path)
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint"):
            run_files.load_tensors(path)


# Other files


def test_links_out_of_a_feature_file_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = SECRET
        file["group/x"] = SECRET
    SECRET.tofile(tmp_path / "secret.bin")
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
        file["mount"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "group")
        file["soft"] = h5py.SoftLink("/external")
        file["real/x"] = SECRET
        layout = h5py.VirtualLayout(shape=SECRET.shape, dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", shape=SECRET.shape)
        file.create_virtual_dataset("virtual", layout)
        raw = [(str(tmp_path / "secret.bin"), 0, SECRET.nbytes)]
        file.create_dataset("raw", shape=SECRET.shape, dtype="f4", external=raw)
    for name in ("external", "soft", "mount/x"):
        refused(path, "is a link to elsewhere", dataset=name)
    for name in ("virtual", "raw"):
        refused(path, "lies in other files", dataset=name)
    assert torch.equal(ih.Exemplars.load(path, "real/x").features, torch.from_numpy(SECRET))


def test_references_and_objects_are_no_features(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["x"] = SECRET
        references = file.create_dataset("reference", (1, 1, 1), dtype=h5py.ref_dtype)
        references[0, 0, 0] = file["x"].ref
        file.create_dataset("text", (1, 1, 1), dtype=h5py.string_dtype())
        file.create_dataset("ragged", (1, 1, 1), dtype=h5py.vlen_dtype(np.float32))
        file.create_dataset("opaque", (1, 1, 1), dtype="V8")
    for name in ("reference", "text", "ragged", "opaque"):
        refused(path, "numbers were expected", dataset=name)


def test_filters_that_need_foreign_libraries_are_refused(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        recipe = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        recipe.set_chunk((2, 2, 3))
        recipe.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard's number
        space = h5py.h5s.create_simple((2, 2, 3))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, recipe)
    refused(path, r"filters \[32015\]", dataset="x")


# Headers that lie


@pytest.mark.parametrize("shape", [(HUGE, 1, 1), (HUGE, HUGE, HUGE), (-1, 1, 1), (10**6,) * 2])
@pytest.mark.parametrize("descr", ["<f4", "<f8", "|V0", "<U0", "|S0", "|O"])
def test_numpy_headers_are_not_believed(descr, shape, tmp_path, task):
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", npy(descr, shape))
    refused(tmp_path / "f.npz", "cannot be read as .npz")
    checkpoint, config = tmp_path / "c.eqx", tmp_path / "config.json"
    checkpoint.write_bytes(npy(descr, shape))
    config.write_text(json.dumps(OPTIONS))
    with pytest.raises(ValueError, match=r"c\.eqx is no \.eqx file"):
        ih.load_icl_dynamics(checkpoint, config, task)


@pytest.mark.parametrize("header", ["(" * 9_000, "-" * 9_000 + "1", "[" * 100 + "]" * 100, "{}"])
def test_numpy_headers_are_not_evaluated(header, tmp_path):
    text = header.encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", content)
    refused(tmp_path / "f.npz", "cannot be read as .npz")


def test_bombs_are_not_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "f.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as member,
    ):
        member.write(npy("<f4", (300, 2**10, 2**8))[:-64])
        for _ in range(300):
            member.write(bytes(2**20))
    assert (tmp_path / "f.npz").stat().st_size < 2**19
    refused(tmp_path / "f.npz", "save them uncompressed")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("empty", (10**6, 10**3, 10**3), dtype="f4")
        options = {"chunks": (2**10, 2**10, 2**7), "maxshape": (None,) * 3}
        file.create_dataset("chunk", (1, 1, 1), dtype="f4", **options)
    for name in ("empty", "chunk"):
        refused(tmp_path / "f.h5", "save them uncompressed", dataset=name)


def packed_h5(path, pack, filters):
    """One chunk of 128 bytes, in whose place something else is packed."""
    recipe = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    recipe.set_chunk((4, 2, 4))
    for number in filters:
        recipe.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (9,) if number == 1 else ())
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((4, 2, 4))
        found = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, recipe)
        found.write_direct_chunk((0, 0, 0), pack(compressed_zeros()))


def compressed_zeros():
    """256 MiB, without their ever being in memory."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(2**20)) for _ in range(2**8)) + packer.flush()


H5_BOMBS = {
    "gzip": (bytes, (1,), "unpacks to more than its 128 bytes"),
    "gzip twice": (zlib.compress, (1, 1), r"filters \[1, 1\]"),
    "gzip, shuffled": (bytes, (1, 2), r"filters \[1, 2\]"),
    "gzip with a checksum": (lambda b: b + b"abcd", (1, 3), "unpacks to more than"),
}


@pytest.mark.parametrize("name", H5_BOMBS)
def test_chunks_are_not_unpacked_to_more_than_they_hold(name, tmp_path):
    pack, filters, words = H5_BOMBS[name]
    packed_h5(tmp_path / "f.h5", pack, filters)
    assert (tmp_path / "f.h5").stat().st_size < 2**19
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "f.h5", words, dataset="x")
    with pytest.raises(ValueError, match=words):
        read_icl_dynamics_log(log_with(tmp_path / "log.h5", lambda f: copied(tmp_path / "f.h5", f)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM // 1024


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_numpy_does_not_write_are_refused(method, tmp_path):
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", npy("<f4", (2, 2, 2)))
    content = bytearray(path.read_bytes())
    for header, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(header) + place] = method
    path.write_bytes(content)
    refused(tmp_path / "f.npz", f"packed by zip's method {method}, which numpy does not write")


def test_members_are_not_inflated_to_more_than_they_declare(tmp_path):
    content, path = npy("<f4", (4, 2, 2)), tmp_path / "f.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as member,
    ):
        member.write(content)
        for _ in range(2**8):
            member.write(bytes(2**20))
    sizes = [(len(content) + extra).to_bytes(4, "little") for extra in (2**28, 0)]
    path.write_bytes(path.read_bytes().replace(*sizes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "cannot be read as .npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM // 1024


# Logs


def log_with(path, add):
    with h5py.File(path, "w") as file:
        file["eval_iter"] = np.arange(4)
        file["split/loss"] = np.ones((4, 3))
        add(file)
    return path


def copied(path, file):
    with h5py.File(path) as other:
        other.copy("x", file, "split/x")


def raw(file):
    where = [("/etc/passwd", 0, 48)]
    file.create_dataset("split/x", (4, 3), "f4", external=where)


LOGS = {
    "a link out": (
        lambda f: f.__setitem__("split/x", h5py.ExternalLink("secret.h5", "x")),
        "split/x', which is a link to elsewhere",
    ),
    "a group out": (
        lambda f: f.__setitem__("more", h5py.ExternalLink("secret.h5", "group")),
        "more', which is a link to elsewhere",
    ),
    "a link to nothing": (
        lambda f: f.__setitem__("split/x", h5py.SoftLink("/nowhere")),
        "split/x', which is a link",
    ),
    "raw bytes of another file": (raw, "split/x', which lies in other files"),
    "a huge shape": (
        lambda f: f.create_dataset("split/x", (4, 10**6, 10**6), "f8"),
        "save them uncompressed",
    ),
    "a scalar": (lambda f: f.__setitem__("split/x", 1.0), r"split/x of shape \(\) for 4"),
    "nothing": (lambda f: f.__setitem__("split/x", h5py.Empty("f4")), "split/x', which is empty"),
    "no columns": (
        lambda f: f.create_dataset("split/x", (4, 0), "f4"),
        r"split/x of shape \(4, 0\)",
    ),
    "a group": (lambda f: f.create_group("split/x"), "split/x, which is not a dataset"),
    "text": (lambda f: f.__setitem__("split/x", ["a"] * 4), "split/x', which is object"),
    "records": (
        lambda f: f.__setitem__("split/x", np.zeros((4, 3), [("a", "f4")])),
        "split/x', which is .*'a'",
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_are_read_with_the_same_guards(name, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = SECRET
        file["group/x"] = SECRET
    add, words = LOGS[name]
    with pytest.raises(ValueError, match=rf"log\.h5 .*{words}"):
        read_icl_dynamics_log(log_with(tmp_path / "log.h5", add))


# Names without end


def test_a_name_that_goes_round_in_circles_is_refused_at_once(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = SECRET
        file["loop"] = file["/"]
    assert len(ih.Exemplars.load(tmp_path / "f.h5", "loop/" * 9 + "x").features) == len(SECRET)
    started = time.monotonic()
    refused(tmp_path / "f.h5", "up to 32 parts", dataset="loop/" * 2_000 + "x")
    assert time.monotonic() - started < 1


def test_many_names_are_not_all_told(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for number in range(5_000):
            file.create_group(f"group {number}")
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for number in range(5_000):
            archive.writestr(f"{number}.npy", b"")
        archive.writestr("long" * 10_000 + ".npy", b"")
    for name in ("f.h5", "f.npz"):
        with pytest.raises(ValueError, match=r"5,00\d in all") as told:
            ih.Exemplars.load(tmp_path / name)
        assert len(str(told.value)) < 1_000
    with pytest.raises(ValueError, match="name") as told:
        RunConfig.load({"name": ["x" * 100_000] * 1_000})
    assert len(str(told.value)) < 4_000


@pytest.mark.parametrize("length", [0, 8, 2**20, 2**62, 2**64 - 1])
def test_safetensors_headers_are_not_believed(length, tmp_path):
    path = tmp_path / "c.safetensors"
    for body in (b"{}", b"[" * 10_000, b'{"w":{"dtype":"F32","shape":[1000000000000],'):
        path.write_bytes(length.to_bytes(8, "little") + body)
        with pytest.raises(ValueError, match=r"c\.safetensors is not a checkpoint"):
            run_files.load_tensors(path)
    text = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"c\.safetensors is not a checkpoint"):
        run_files.load_tensors(path)


JSON = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a huge number": '{"format": 1' + "0" * 5_000 + "}",
    "NaN": '{"format": NaN}',
    "not an object": "3",
    "keys that come twice": '{"format": 9, "format": 1}',
    "no text": "\x00\ud800",
}


@pytest.mark.parametrize("name", JSON)
def test_hostile_json_is_refused(name, tmp_path, task):
    content = JSON[name].encode("utf-8", "surrogatepass")
    for file in (run_files.CONFIG, run_files.METRICS):
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        ih.Run(tmp_path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        run_files.read_metrics(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        ih.load_icl_dynamics(tmp_path / "c.eqx", tmp_path / run_files.CONFIG, task)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 10**9},
        {"depth": 10**30},
        {"d_model": 2**30},
        {"mlp_ratio": 1e300},
        {"sin_time": float("inf")},
        {"num_heads": 0},
        {"num_heads": True},
        {"depth": "2"},
    ],
    ids=str,
)
def test_a_configuration_takes_no_memory_that_its_checkpoint_does_not_back(options, tmp_path, task):
    checkpoint, config = tmp_path / "c.eqx", tmp_path / "config.json"
    checkpoint.write_bytes(as_bytes(*leaves(random_model(task, SHAPE))))
    config.write_text(json.dumps(OPTIONS | options))
    with pytest.raises(ValueError, match=rf"config\.json.* {next(iter(options))}|describes"):
        ih.load_icl_dynamics(checkpoint, config, task)


# Names and paths


NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/x",
    "a/b",
    "a\\b",
    "a\0b",
    "~",
    ".hidden",
    "a b",
    "x\n",
    "é",
    "$HOME",
]


@pytest.mark.parametrize("name", [*NAMES, "a" * 300], ids=repr)
def test_a_run_cannot_be_named_out_of_its_root(name, tmp_path):
    with pytest.raises(ValueError, match="name"):
        RunConfig(name=name)


@pytest.mark.parametrize("name", ["a", "A-1", "seed=5+clamp._x", "-x", "a..b"])
def test_names_of_runs_lie_in_the_root(name, tmp_path):
    folder = run_folder(tmp_path, RunConfig(name=name))
    assert folder.resolve().parent == tmp_path.resolve()


def test_features_are_a_regular_file(tmp_path):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "null.npz").symlink_to("/dev/zero")
    for name in ("folder.h5", "null.npz"):
        with pytest.raises(FileNotFoundError, match=name):
            ih.Exemplars.load(tmp_path / name)


def test_a_graft_reads_nothing_but_a_run(tmp_path, model, batch):
    """A folder, a device, and a folder whose config.json is another file."""
    (tmp_path / "config.json").symlink_to("/etc/passwd")
    for run in (str(tmp_path), "/etc", "/dev/zero", "a\0b", ""):
        with pytest.raises((ValueError, FileNotFoundError), match=r"config\.json|run"):
            ih.clamps.check(model, [ih.clamps.GraftIn(run=run, step=0, layer=0)])


# Damage


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_two_thousand_mutated_files(seed):
    """In a process of its own, as users load: without this suite's checks of shapes."""
    command = [sys.executable, str(Path(__file__).parents[1] / "stress" / "mutations.py")]
    done = subprocess.run(
        [*command, "--files", "2000", "--seed", str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3_000:]
    assert "tried 2000" in done.stdout
    assert "wrong 0" in done.stdout
    assert done.stderr == ""
