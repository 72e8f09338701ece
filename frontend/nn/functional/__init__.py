"""Functions of neural networks, without state: `torch.nn.functional`."""

from flambeau.nn.functional.activations import *  # noqa: F403
from flambeau.nn.functional.attention import *  # noqa: F403
from flambeau.nn.functional.layers import *  # noqa: F403
from flambeau.nn.functional.losses import *  # noqa: F403
from flambeau.nn.functional.normalization import *  # noqa: F403
from flambeau.nn.functional.pooling import *  # noqa: F403
