"""Data sets, samplers, batches: `torch.utils.data`."""

from flambeau.utils.data.collate import *  # noqa: F403
from flambeau.utils.data.dataloader import *  # noqa: F403
from flambeau.utils.data.dataset import *  # noqa: F403
from flambeau.utils.data.sampler import *  # noqa: F403
from flambeau.utils.data.worker import *  # noqa: F403
