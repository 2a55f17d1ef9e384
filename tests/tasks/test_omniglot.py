"""Omniglot's features, with a torchvision of our own in place of the real one."""

import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ih_interp.tasks.omniglot import omniglot_features

# Set, character, grey of its first drawing; out of order, as a file system may list them.
CHARACTERS = [
    ("evaluation", "Angelic/character01", 100),
    ("background", "Greek/character02", 40),
    ("background", "Greek/character01", 20),
    ("background", "Braille/character01", 60),
]
FIRST_GREYS = [60, 20, 40, 100]  # background by name, then evaluation


class FakeOmniglot:
    """Writes small grey drawings, three a character; a file's grey tells which it is."""

    asked: list[tuple[bool, bool]]

    def __init__(self, root: str, background: bool, download: bool):
        self.asked.append((background, download))
        name = "background" if background else "evaluation"
        self.target_folder = str(Path(root) / "omniglot-py" / f"images_{name}")
        for part, character, grey in CHARACTERS:
            if part == name:
                folder = Path(self.target_folder) / character
                folder.mkdir(parents=True)
                for drawing in (3, 1, 2):
                    image = Image.new("L", (2, 2), grey + drawing - 1)
                    image.save(folder / f"0900_{drawing:02}.png")


class FakeSqueezeNet(nn.Module):
    """Its last block gives the image, over 2 x 2 places; its classifier a convolution of that."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.classifier = nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.flatten(self.classifier(self.features(images)), 1)


class FakeResNet(nn.Module):
    """Its average pool is the image; what `fc` makes of it is something else."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 7)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.sizes.append(len(images))
        return self.fc(images.flatten(start_dim=1))


@pytest.fixture
def vision(monkeypatch):
    """A module `torchvision` that records how it is used."""
    fake = ModuleType("torchvision")
    network = FakeResNet()
    monkeypatch.setattr(FakeOmniglot, "asked", [], raising=False)

    def compose(steps):
        first, second = steps
        return lambda image: second(first(image))

    def grayscale(num_output_channels: int):
        return lambda image: Image.merge("RGB", [image] * num_output_channels)

    def to_tensor(resize_size: int):
        assert resize_size == 224
        return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    weights = SimpleNamespace(transforms=to_tensor)
    fake.datasets = SimpleNamespace(Omniglot=FakeOmniglot)
    fake.transforms = SimpleNamespace(Compose=compose, Grayscale=grayscale)

    def resnet18(weights):
        assert weights is fake.models.ResNet18_Weights.IMAGENET1K_V1
        return network

    of_squeezenet = SimpleNamespace(transforms=to_tensor)

    def squeezenet1_1(weights):
        assert weights is of_squeezenet
        return FakeSqueezeNet()

    fake.models = SimpleNamespace(
        resnet18=resnet18,
        ResNet18_Weights=SimpleNamespace(IMAGENET1K_V1=weights),
        squeezenet1_1=squeezenet1_1,
        SqueezeNet1_1_Weights=SimpleNamespace(IMAGENET1K_V1=of_squeezenet),
    )
    fake.network = network
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    return fake


def test_features_stand_in_a_fixed_random_order(vision, tmp_path):
    features = omniglot_features(tmp_path, "resnet18", n_exemplars=2, seed=3)
    assert features.shape == (4, 2, 12)
    assert features.dtype == torch.float32
    order = np.random.default_rng(3).permutation(4)
    assert order.tolist() != [0, 1, 2, 3]
    for row, character in enumerate(order):
        grey = FIRST_GREYS[character]
        assert features[row, 0].tolist() == [grey] * 12
        assert features[row, 1].tolist() == [grey + 1] * 12
    assert FakeOmniglot.asked == [(True, True), (False, True)]
    assert isinstance(vision.network.fc, nn.Identity)


@pytest.mark.usefixtures("vision")
def test_squeezenet_is_pooled_before_its_classifier_and_scaled(tmp_path):
    features = omniglot_features(tmp_path, "squeezenet1_1", n_exemplars=2, seed=3)
    assert features.shape == (4, 2, 3)  # a channel each
    for row, character in enumerate(np.random.default_rng(3).permutation(4)):
        grey = FIRST_GREYS[character]
        assert features[row, 1].tolist() == pytest.approx([(grey + 1) * 27 / 69.5] * 3, rel=1e-6)


@pytest.mark.usefixtures("vision")
def test_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="network='vgg16'"):
        inspect.unwrap(omniglot_features)(tmp_path, "vgg16", n_exemplars=2, seed=0)


def test_batches_do_not_matter(vision, tmp_path):
    whole = omniglot_features(tmp_path / "a", "resnet18", n_exemplars=3, seed=0)
    parts = omniglot_features(tmp_path / "b", "resnet18", n_exemplars=3, seed=0, batch_size=5)
    assert torch.equal(whole, parts)
    assert vision.network.sizes == [12, 5, 5, 2]


@pytest.mark.usefixtures("vision")
def test_a_character_without_its_drawings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="character01 holds 3"):
        omniglot_features(tmp_path, "resnet18", n_exemplars=4, seed=0)


@pytest.mark.parametrize("n_exemplars", [0, 21])
def test_more_drawings_than_there_are_is_refused(tmp_path, n_exemplars):
    with pytest.raises(ValueError, match=f"n_exemplars={n_exemplars}"):
        omniglot_features(tmp_path, "resnet18", n_exemplars=n_exemplars, seed=0)


def test_without_torchvision_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -c \S+ -e '\.\[omniglot\]'.*load"):
        omniglot_features(tmp_path, "resnet18", n_exemplars=5, seed=0)
