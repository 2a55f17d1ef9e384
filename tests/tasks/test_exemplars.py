"""Exemplars: the geometry of the synthetic ones, and files, good and bad."""

import inspect
import os

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from ih_interp.config import RunConfig
from ih_interp.model import build_model
from ih_interp.tasks.exemplars import Exemplars, FileSource, GaussianSource
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig


def geometry(features: Tensor) -> dict[str, float]:
    """Scalar products of different drawings as shares of the mean square norm, and the spread."""
    features = features.double()
    n_classes, n_exemplars, _ = features.shape
    square = features.square().sum()
    of_classes = features.sum(dim=1).square().sum()
    of_all = features.sum(dim=(0, 1)).square().sum()
    n = n_classes * n_exemplars
    variances = torch.linalg.eigvalsh(torch.cov(features.flatten(end_dim=1).T))
    return {
        "between": float(
            (of_all - of_classes) / (n_classes * (n_classes - 1) * n_exemplars**2) / (square / n)
        ),
        "within": float((of_classes - square) / (n * (n_exemplars - 1)) / (square / n)),
        "norm": float((square / n).sqrt()),
        "participation": float(variances.sum() ** 2 / variances.square().sum()),
    }


def test_gaussian_has_the_geometry_of_real_features():
    found = geometry(Exemplars.gaussian(n_classes=1_000).features)
    assert found["between"] == pytest.approx(0.73, abs=0.005)
    assert found["within"] == pytest.approx(0.88, abs=0.005)
    assert found["norm"] == pytest.approx(27, abs=0.5)
    decay = np.arange(1, 513) ** -1.16
    participation = decay.sum() ** 2 / (decay**2).sum()
    assert participation == pytest.approx(14, abs=0.5)
    # Over seeds, that of a sample of 1,000 classes has a standard deviation of 0.3.
    assert found["participation"] == pytest.approx(participation, abs=0.9)


def test_gaussian_is_like_the_measured_features(shared):
    real = geometry(Exemplars.load(shared / "data" / "omniglot_features.h5").features)
    made = geometry(Exemplars.gaussian(n_classes=1_623).features)
    assert made["between"] == pytest.approx(real["between"], abs=0.03)
    assert made["within"] == pytest.approx(real["within"], abs=0.02)
    assert made["norm"] == pytest.approx(real["norm"], rel=0.02)
    assert made["participation"] == pytest.approx(real["participation"], rel=0.1)


def test_gaussian_depends_on_its_arguments_alone(exemplars):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = Exemplars.gaussian(n_classes=30, n_exemplars=3, n_features=16, seed=0)
    assert torch.equal(again.features, exemplars.features)
    assert torch.equal(torch.get_rng_state(), before)
    other = Exemplars.gaussian(n_classes=30, n_exemplars=3, n_features=16, seed=1)
    assert not torch.equal(other.features, exemplars.features)


def test_sizes(exemplars):
    assert exemplars.features.shape == (30, 3, 16)
    assert (exemplars.n_classes, exemplars.n_exemplars, exemplars.n_features) == (30, 3, 16)
    assert exemplars.features.dtype == torch.float32


@pytest.mark.parametrize("sizes", [{"n_classes": 1}, {"n_exemplars": 0}, {"n_features": 0}])
def test_gaussian_refuses_sizes_that_are_none(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}=.*at least"):
        Exemplars.gaussian(**sizes)


def test_gaussian_comes_back_from_its_source(exemplars):
    assert exemplars.source == GaussianSource(n_classes=30, n_exemplars=3, n_features=16, seed=0)
    again = Exemplars.from_source(exemplars.source)
    assert torch.equal(again.features, exemplars.features)
    assert again.source == exemplars.source


def test_save_and_load_round_trip(exemplars, tmp_path):
    path = tmp_path / "features.npz"
    saved = exemplars.save(path)
    assert torch.equal(saved.features, exemplars.features)
    assert saved.source == FileSource(path=str(path), dataset="features", sha256=exemplars.sha256)
    again = Exemplars.from_source(saved.source)
    assert torch.equal(again.features, exemplars.features)


def test_a_source_holds_in_any_working_directory(exemplars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = exemplars.save("features.npz").source
    assert source.path == str(tmp_path.resolve() / "features.npz")
    monkeypatch.chdir("/")
    assert Exemplars.from_source(source).sha256 == exemplars.sha256


def test_a_failed_save_leaves_the_old_file_alone(exemplars, tmp_path, monkeypatch):
    path = tmp_path / "features.npz"
    exemplars.save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Exemplars(exemplars.features + 1).save(path)
    assert Exemplars.load(path).sha256 == exemplars.sha256
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_features_that_are_a_parameter_are_saved(tmp_path):
    features = torch.ones(2, 1, 3, requires_grad=True)
    assert Exemplars(features).save(tmp_path / "f.npz").features.tolist() == features.tolist()


def test_a_recorded_source_gives_the_features(exemplars, tmp_path):
    assert exemplars.recorded_source == exemplars.source
    saved = exemplars.save(tmp_path / "features.npz")
    assert saved.recorded_source == saved.source
    for good in (exemplars, saved):
        changed = Exemplars(good.features + 1, good.source)
        with pytest.raises(ValueError, match=r"source.* save"):
            changed.recorded_source  # noqa: B018
    with pytest.raises(ValueError, match=r"no source .*\.save\(path\)"):
        Exemplars(exemplars.features).recorded_source  # noqa: B018


@pytest.mark.parametrize("dataset", ["resnet18/224/feat", "other"])
def test_reads_h5(exemplars, tmp_path, dataset):
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file[dataset] = exemplars.features.numpy()
    named = None if dataset == "resnet18/224/feat" else dataset
    loaded = Exemplars.load(path, dataset=named)
    assert torch.equal(loaded.features, exemplars.features)
    assert loaded.source.dataset == dataset


@pytest.mark.parametrize("dtype", ["float64", "float16", "int16", "uint8"])
def test_numbers_become_float32(tmp_path, dtype):
    path = tmp_path / "features.npz"
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.savez(path, features=array)
    loaded = Exemplars.load(str(path)).features
    assert loaded.dtype == torch.float32
    assert loaded.tolist() == array.tolist()


def test_digest_tells_bytes_and_shape():
    features = torch.arange(24.0).reshape(2, 3, 4)
    assert Exemplars(features).sha256 == Exemplars(features.clone()).sha256
    others = [features + 1, features.reshape(3, 2, 4), features.transpose(0, 1).contiguous()]
    digests = {Exemplars(other).sha256 for other in (features, *others)}
    assert len(digests) == 4
    strided = torch.arange(24.0).reshape(3, 2, 4).transpose(0, 1)
    assert Exemplars(strided).sha256 == Exemplars(strided.contiguous()).sha256


def test_a_file_that_changed_is_refused(exemplars, tmp_path):
    source = exemplars.save(tmp_path / "features.npz").source
    Exemplars(exemplars.features + 1).save(tmp_path / "features.npz")
    with pytest.raises(ValueError, match="other features"):
        Exemplars.from_source(source)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(4, 0, 3), r"shape \(4, 0, 3\)"),
        (torch.zeros(2, 2, 2, dtype=torch.float64), r"are torch.float64; convert them"),
        (
            torch.tensor([[[0.0, 1.0]], [[2.0, torch.nan]]]),
            r"1 exemplar features are NaN or infinite, the first at .* \(1, 0, 1\)",
        ),
        (torch.full((1, 1, 2), -torch.inf), r"2 exemplar features are NaN or infinite"),
    ],
)
def test_bad_features_are_refused(features, words):
    with pytest.raises(ValueError, match=words):
        Exemplars(features)


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FEATURES = np.zeros((2, 3, 4), dtype=np.float32)


@pytest.mark.parametrize("suffix", [".csv", ".pt", ".npyz", ""])
def test_other_suffixes_are_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"is not \.h5, \.npz or \.npy"):
        Exemplars.load(tmp_path / f"features{suffix}")
    with pytest.raises(ValueError, match=r"saved as \.npz"):
        Exemplars(torch.zeros(1, 1, 1)).save(tmp_path / f"features{suffix}")


@pytest.mark.parametrize("name", ["features.h5", "features.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"no feature file at .*{name}"):
        Exemplars.load(tmp_path / name)


@pytest.mark.parametrize("name", ["features.h5", "features.npz"])
@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"")])
def test_a_file_cut_short_is_refused(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("h5"):
        write_h5(path, features=np.zeros((20, 20, 20)))
    else:
        np.savez(path, features=np.zeros((20, 20, 20)))
    damage(path)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as .* cut short"):
        Exemplars.load(path, dataset="features")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_is_refused(tmp_path, save):
    path = tmp_path / "features.npz"
    save(path, features=np.random.default_rng(0).normal(size=(5, 5, 5)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"features\.npz cannot be read as \.npz"):
        Exemplars.load(path)


def test_a_missing_array_is_named_with_those_there_are(tmp_path):
    write_h5(tmp_path / "f.h5", feats=FEATURES)
    with pytest.raises(ValueError, match=r"f\.h5.*resnet18/224/feat.*\['feats'\]"):
        Exemplars.load(tmp_path / "f.h5")
    np.savez(tmp_path / "f.npz", feats=FEATURES, labels=FEATURES)
    with pytest.raises(ValueError, match=r"f\.npz.*'features'.*\['feats', 'labels'\]"):
        Exemplars.load(tmp_path / "f.npz")


def test_a_group_is_no_dataset(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["resnet18/224/feat"] = FEATURES
    with pytest.raises(ValueError, match=r"no dataset 'resnet18/224'"):
        Exemplars.load(tmp_path / "f.h5", dataset="resnet18/224")


@pytest.mark.parametrize(
    "array", [FEATURES[0], FEATURES[..., None], FEATURES.astype(complex), FEATURES.astype(bool)]
)
def test_arrays_of_another_kind_are_refused(tmp_path, array):
    write_h5(tmp_path / "f.h5", features=array)
    np.savez(tmp_path / "f.npz", features=array)
    for name in ("f.h5", "f.npz"):
        with pytest.raises(ValueError, match=rf"{array.dtype} of shape .* numbers .*were expected"):
            Exemplars.load(tmp_path / name, dataset="features")


def test_files_with_bad_values_are_refused(tmp_path):
    array = FEATURES.copy()
    array[1, 2, 3] = np.nan
    np.savez(tmp_path / "f.npz", features=array)
    with pytest.raises(ValueError, match=r"NaN or infinite, the first at .* \(1, 2, 3\)"):
        Exemplars.load(tmp_path / "f.npz")


def test_omniglot_comes_from_its_module(monkeypatch, tmp_path):
    asked = {}

    def features(root, network, **options):
        asked.update(root=root, network=network, **options)
        return torch.ones(3, options["n_exemplars"], 4)

    monkeypatch.setattr("ih_interp.tasks.omniglot.omniglot_features", features)
    exemplars = Exemplars.omniglot(str(tmp_path), n_exemplars=2, seed=7)
    assert exemplars.features.shape == (3, 2, 4)
    assert exemplars.source is None
    assert asked == {"root": tmp_path, "network": "resnet18", "n_exemplars": 2, "seed": 7}
    Exemplars.omniglot(tmp_path, network="squeezenet1_1")
    assert asked["network"] == "squeezenet1_1"


# Features that are changed in place


def by_torch(exemplars):
    exemplars.features.mul_(2)


def by_numpy(exemplars):
    """Which no counter of torch's notices."""
    array = exemplars.features.numpy()
    array *= 2


def by_data(exemplars):
    exemplars.features.data[0, 0, 0] += 1


def by_sign(exemplars):
    """To zeros of the other sign, which are equal and have other bytes."""
    exemplars.features.neg_()


CHANGES = [by_torch, by_numpy, by_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["gaussian", "file"])
def test_features_changed_in_place_are_not_recorded_as_their_source(change, kind, tmp_path):
    exemplars = Exemplars.gaussian(n_classes=12, n_exemplars=2, n_features=8)
    exemplars = exemplars if kind == "gaussian" else exemplars.save(tmp_path / "f.npz")
    before = exemplars.sha256
    TaskConfig(exemplars=exemplars)
    change(exemplars)
    assert exemplars.sha256 == Exemplars(exemplars.features.clone()).sha256 != before
    with pytest.raises(ValueError, match="source"):
        TaskConfig(exemplars=exemplars)
    saved = exemplars.save(tmp_path / "new.npz")
    assert torch.equal(saved.features, exemplars.features)
    assert TaskConfig(exemplars=saved).exemplars.sha256 == exemplars.sha256


def test_an_array_that_shares_its_memory_is_seen_to_change():
    array = np.ones((4, 2, 3), dtype=np.float32)
    exemplars = Exemplars(torch.from_numpy(array))
    before = exemplars.sha256
    array *= 2
    assert exemplars.sha256 != before
    array /= 2
    assert exemplars.sha256 == before
    taken = Exemplars.from_array(array)
    array *= 2
    assert taken.sha256 == before  # a copy


def test_zeros_of_the_other_sign_are_other_bytes():
    exemplars = Exemplars(torch.zeros(2, 1, 3))
    before = exemplars.sha256
    by_sign(exemplars)
    assert exemplars.sha256 != before


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_keeps_the_features_that_it_was_made_with(change):
    exemplars = Exemplars.gaussian(n_classes=12, n_exemplars=2, n_features=8)
    task = FewShotTask(exemplars, TaskConfig(n_train_classes=8))
    model = build_model(task)
    batch = task.sample("train", 20, generator=torch.Generator().manual_seed(0))
    features, logits = model.embed.features.clone(), model(batch.tokens)
    change(exemplars)
    assert torch.equal(model.embed.features, features)
    assert torch.equal(model(batch.tokens), logits)
    new = build_model(task)  # as they are now
    assert torch.equal(new.embed.features, exemplars.features.flatten(end_dim=1))
    assert not torch.equal(new(batch.tokens), logits)


def test_what_a_change_in_place_broke_is_refused():
    exemplars = Exemplars.gaussian(n_classes=12, n_exemplars=2, n_features=8)
    exemplars.features[3, 1, 2] = torch.nan
    for use in (lambda: exemplars.sha256, lambda: build_model(FewShotTask(exemplars))):
        exemplars.features[3, 1, 2] = torch.nan
        with pytest.raises(
            ValueError, match=r"NaN or infinite, the first at .* \(3, 1, 2\)|classes"
        ):
            use()


# Arrays


REAL = ["float16", "float32", "float64", "longdouble", ">f4", "int8", "int64", "uint16"]


@pytest.mark.parametrize("dtype", REAL)
def test_from_array_takes_real_numbers_of_any_type(dtype):
    array = (np.arange(24) - (0 if dtype.startswith("u") else 12)).reshape(2, 3, 4).astype(dtype)
    for given in (array, np.asfortranarray(array), array[::-1][::-1]):
        features = Exemplars.from_array(given).features
        assert features.dtype == torch.float32
        assert features.tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_from_array_takes_tensors_as_copies(dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    exemplars = Exemplars.from_array(tensor)
    assert exemplars.features.tolist() == tensor.tolist()
    tensor.zero_()
    assert float(exemplars.features.sum()) == 276
    with_gradient = torch.ones(2, 1, 3, requires_grad=True)
    assert not Exemplars.from_array(with_gradient).features.requires_grad


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 2, 2), dtype=bool), "is bool of shape"),
        (np.ones((2, 2, 2), dtype=complex), "is complex128 of shape"),
        (torch.ones(2, 2, 2, dtype=torch.bool), r"is torch\.bool of shape"),
        (torch.ones(2, 2, 2, dtype=torch.complex64), r"is torch\.complex64 of shape"),
        (np.array([[["a"]]]), "is <U1 of shape"),
        (np.empty((1, 1, 1), dtype=object), "is object of shape"),
        (np.ones((2, 2)), r"of shape \(2, 2\)"),
        (np.ones((2, 0, 2)), "none of them empty"),
        (np.full((1, 1, 1), 1e300), "NaN or infinite"),
        (np.ma.masked_array(np.ones((1, 1, 1))), "masked array; fill it"),
    ],
)
def test_from_array_refuses_what_is_no_table_of_features(array, words):
    with pytest.raises(ValueError, match=words):
        Exemplars.from_array(array)


def test_from_array_refuses_lists():
    with pytest.raises(TypeError, match="list"):
        inspect.unwrap(Exemplars.from_array.__func__)(Exemplars, [[[1.0]]])


def test_from_array_with_a_path_gives_what_a_run_records(tmp_path):
    array = np.random.default_rng(0).normal(size=(60, 3, 8))
    exemplars = Exemplars.from_array(array, path=tmp_path / "x.npz")
    source = TaskConfig(exemplars=exemplars).exemplars
    assert Exemplars.from_source(source).features.tolist() == array.astype(np.float32).tolist()
    with pytest.raises(ValueError, match=r"exemplars\.save\(path"):
        TaskConfig(exemplars=Exemplars.from_array(array))


def test_the_only_array_of_a_file_needs_no_name(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "x.npz", array)
    np.save(tmp_path / "x.npy", array)
    for name, dataset in (("x.npz", "arr_0"), ("x.npy", "")):
        loaded = Exemplars.load(tmp_path / name)
        assert loaded.features.tolist() == array.tolist()
        assert loaded.source.dataset == dataset
        assert Exemplars.from_source(loaded.source).sha256 == loaded.sha256
        config = RunConfig(task=TaskConfig(exemplars=loaded))
        assert RunConfig.load(config.save()).task.exemplars == loaded.source
    with pytest.raises(ValueError, match="dataset='a'"):
        Exemplars.load(tmp_path / "x.npy", "a")


H5_KINDS = {
    "bool": (np.ones((2, 2, 2), dtype=bool), "is bool of shape"),
    "complex": (np.ones((2, 2, 2), dtype=complex), "is complex128 of shape"),
    "text": (["a", "b"], "is object of shape"),
    "bytes": (np.array([[[b"ab"]]]), r"is \|S2 of shape"),
    "records": (np.zeros((2, 2, 2), [("a", "f4"), ("b", "i4")]), "'a'.*'b'"),
    "null": (h5py.Empty("f4"), "is empty: float32"),
    "null text": (h5py.Empty("S3"), "is empty"),
    "zero": (np.zeros((0, 2, 2)), "none of them empty"),
    "scalar": (1.0, r"float64 of shape \(\)"),
}


@pytest.mark.parametrize("kind", H5_KINDS)
def test_other_types_of_h5_are_refused_by_their_names(kind, tmp_path):
    value, words = H5_KINDS[kind]
    write_h5(tmp_path / "f.h5", x=value)
    with pytest.raises(ValueError, match=rf"f\.h5.*{words}"):
        Exemplars.load(tmp_path / "f.h5", "x")


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f8", "int64", "uint8", "longdouble"])
def test_numbers_of_any_type_in_h5_become_float32(dtype, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_h5(tmp_path / "f.h5", x=array)
    assert Exemplars.load(tmp_path / "f.h5", "x").features.tolist() == array.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "chunks": (3, 5, 7)},
        {"fletcher32": True, "chunks": (10, 1, 1)},
    ],
    ids=str,
)
def test_compressed_features_are_read(options, tmp_path):
    array = np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float32)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("x", data=array, **options)
    assert Exemplars.load(tmp_path / "f.h5", "x").features.tolist() == array.tolist()
