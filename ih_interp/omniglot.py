"""Omniglot's drawings as ResNet18 features, as the paper made them (extra `[omniglot]`).

Images are resized to 224, made three-channel grey, normalised as ImageNet's, and passed through
ResNet18 (IMAGENET1K_V1) up to its average pool; classes stand in a fixed random order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ih_interp.torch_state import plain_torch


@plain_torch()
def resnet18_features(
    root: Path, *, n_exemplars: int, seed: int, batch_size: int = 64
) -> Float[Tensor, "class exemplar feature"]:
    """Features of the first `n_exemplars` drawings of every character, float32, 512 wide.

    Raises ModuleNotFoundError without torchvision, ValueError for more than 20 drawings.
    """
    if not 1 <= n_exemplars <= 20:
        raise ValueError(f"n_exemplars={n_exemplars}: Omniglot has 20 drawings of a character.")
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Omniglot images need torchvision: pip install 'ih-interp[omniglot]'. "
            "Or load ready features with Exemplars.load."
        ) from error
    vision: Any = torchvision
    weights: Any = vision.models.ResNet18_Weights.IMAGENET1K_V1
    network = vision.models.resnet18(weights=weights).eval()
    network.fc = torch.nn.Identity()  # the average pool is the last thing left
    prepare = vision.transforms.Compose(
        [vision.transforms.Grayscale(num_output_channels=3), weights.transforms(resize_size=224)]
    )
    drawings = _first_drawings(vision, root, n_exemplars)
    order = np.random.default_rng(seed).permutation(len(drawings))
    paths = [path for row in order for path in drawings[row]]
    with torch.no_grad():
        pooled = [  # a few images at a time: all of them would fill 5 GB
            network(torch.stack([prepare(_image(path)) for path in part]))
            for part in _chunks(paths, batch_size)
        ]
    return torch.cat(pooled).reshape(len(drawings), n_exemplars, -1).float()


def _first_drawings(vision: Any, root: Path, n_exemplars: int) -> list[list[Path]]:
    """Files of every character, sorted: the background set's characters, then the evaluation set's.

    torchvision itself numbers characters as the file system happens to list them.
    """
    drawings: list[list[Path]] = []
    for background in (True, False):
        dataset = vision.datasets.Omniglot(str(root), background=background, download=True)
        for character in sorted(Path(dataset.target_folder).glob("*/*")):
            files = sorted(character.glob("*.png"))[:n_exemplars]
            if len(files) < n_exemplars:
                raise ValueError(
                    f"{character} holds {len(files)} drawings; remove it to download again."
                )
            drawings.append(files)
    return drawings


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def _chunks(items: list[Path], size: int) -> list[list[Path]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
