from .base import AbstractTracker as AbstractTracker, All as All
from .tensorboard import TensorBoard as TensorBoard
from .weights_and_biases import WandB as WandB
