"""Omniglot's drawings as ResNet18 features, as the paper made them (extra `[omniglot]`).

Images are resized to 224, made three-channel grey, normalised as ImageNet's, and passed through
ResNet18 (IMAGENET1K_V1) up to its average pool; classes stand in a fixed random order.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


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
    with torch.no_grad():
        images = [prepare(image) for row in order for image in drawings[row]]
        pooled = [network(torch.stack(part)) for part in _chunks(images, batch_size)]
    return torch.cat(pooled).reshape(len(drawings), n_exemplars, -1).float()


def _first_drawings(vision: Any, root: Path, n_exemplars: int) -> list[list[Any]]:
    """Images of every character: the background set's characters, then the evaluation set's."""
    drawings: defaultdict[tuple[bool, int], list[Any]] = defaultdict(list)
    for background in (True, False):
        images = vision.datasets.Omniglot(str(root), background=background, download=True)
        for image, character in images:
            if len(drawings[background, character]) < n_exemplars:
                drawings[background, character].append(image)
    return [drawings[key] for key in sorted(drawings, key=lambda key: (not key[0], key[1]))]


def _chunks(items: list[Tensor], size: int) -> list[list[Tensor]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
