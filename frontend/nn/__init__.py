"""Layers, containers, losses: `torch.nn`."""

from flambeau.nn import functional, init, utils
from flambeau.nn.activation import *  # noqa: F403
from flambeau.nn.containers import *  # noqa: F403
from flambeau.nn.conv import *  # noqa: F403
from flambeau.nn.linear import *  # noqa: F403
from flambeau.nn.loss import *  # noqa: F403
from flambeau.nn.module import Module
from flambeau.nn.normalization import *  # noqa: F403
from flambeau.nn.parameter import Buffer, Parameter
from flambeau.nn.pooling import *  # noqa: F403
from flambeau.nn.recurrent import *  # noqa: F403
from flambeau.nn.transformer import *  # noqa: F403
