"""Features of Omniglot's images by an ImageNet classifier (extra `[omniglot]`).

Images are resized to 224, made three-channel grey and normalised as ImageNet's; classes stand in a
fixed random order. Features are the activations of a last layer, averaged over the image:

    resnet18        the last convolution, as in the paper
    squeezenet1_1   the last block, times 27/69.5, so that the norm is about ResNet18's, 27
"""

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._expect import installing
from ih_interp._torch_state import plain_torch

Network: TypeAlias = Literal["resnet18", "squeezenet1_1"]

SCALE = {"resnet18": 1.0, "squeezenet1_1": 27 / 69.5}  # the ratio of the mean norms


@plain_torch()
def omniglot_features(
    root: Path, network: Network, *, n_exemplars: int, seed: int, batch_size: int = 64
) -> Float[Tensor, "class exemplar feature"]:
    """Compute features of the first `n_exemplars` images of every character, float32, 512 wide.

    Raises ModuleNotFoundError without torchvision, ValueError for more than 20 images and for
    another network.
    """
    if network not in get_args(Network):
        raise ValueError(f"network={network!r}: choose from {', '.join(get_args(Network))}.")
    if not 1 <= n_exemplars <= 20:
        raise ValueError(f"n_exemplars={n_exemplars}: expected 1 to 20, the images of a character.")
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Omniglot images need torchvision: {installing('omniglot')}. Or load ready features "
            "with Exemplars.load."
        ) from error
    vision: Any = torchvision
    pool, weights = _network(vision, network)
    prepare = vision.transforms.Compose(
        [vision.transforms.Grayscale(num_output_channels=3), weights.transforms(resize_size=224)]
    )
    images = _first_images(vision, root, n_exemplars)
    order = np.random.default_rng(seed).permutation(len(images))
    paths = [path for row in order for path in images[row]]
    with torch.no_grad():
        pooled = [  # a few images at a time: all of them would fill 5 GB
            pool(torch.stack([prepare(_image(path)) for path in paths[start : start + batch_size]]))
            for start in range(0, len(paths), batch_size)
        ]
    features = torch.cat(pooled) * SCALE[network]
    return features.reshape(len(images), n_exemplars, -1).float()


def _network(vision: Any, name: Network) -> tuple[torch.nn.Module, Any]:
    """Return the network up to its average pool, with ImageNet's weights, and the weights."""
    if name == "resnet18":
        weights = vision.models.ResNet18_Weights.IMAGENET1K_V1
        network = vision.models.resnet18(weights=weights).eval()
        network.fc = torch.nn.Identity()  # what is left ends in the average pool
    else:
        weights = vision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
        network = vision.models.squeezenet1_1(weights=weights).eval()
        # Its classifier is a convolution, which comes before its own average pool.
        network.classifier = torch.nn.AdaptiveAvgPool2d(1)
    return network, weights


def _first_images(vision: Any, root: Path, n_exemplars: int) -> list[list[Path]]:
    """List the files of every character, sorted: first the background set, then the evaluation's.

    torchvision itself numbers characters as the file system happens to list them.
    """
    images: list[list[Path]] = []
    for background in (True, False):
        dataset = vision.datasets.Omniglot(str(root), background=background, download=True)
        for character in sorted(Path(dataset.target_folder).glob("*/*")):
            files = sorted(character.glob("*.png"))[:n_exemplars]
            if len(files) < n_exemplars:
                raise ValueError(
                    f"{character} holds {len(files)} images; remove it to download again."
                )
            images.append(files)
    return images


def _image(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("L")
