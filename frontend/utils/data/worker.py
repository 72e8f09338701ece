"""What runs in a worker process of a `DataLoader`."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau import random
from flambeau.tensor import Tensor


@dataclass
class WorkerInfo:
    """Which worker this process is."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """In a worker process, which one it is; None in the main process."""
    return _info


class Failure:
    """An exception on its way from a worker: its type, message and traceback as text."""

    def __init__(self, error: BaseException, where: str) -> None:
        import traceback  # takes half a millisecond, which every program's start would pay

        self.kind: type[BaseException] = type(error)
        self.text = f"Caught {type(error).__name__} {where}.\nOriginal {traceback.format_exc()}"

    def reraise(self) -> None:
        """Raise it here, as its own type where that takes one message, else as a RuntimeError."""
        try:
            error = self.kind(self.text)
        except Exception:
            raise RuntimeError(self.text) from None
        if isinstance(error, KeyError):  # prints its argument's repr, on one line
            raise KeyError(_Plain(self.text))
        raise error


class _Plain(str):
    def __repr__(self) -> str:
        return str(self)


def portable(batch: Any) -> Any:
    """The batch with its tensors detached: what crosses a process boundary is content, without history."""
    if isinstance(batch, Tensor):
        return batch.detach()
    if isinstance(batch, dict):
        return {key: portable(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[portable(x) for x in batch])
    if isinstance(batch, (list, tuple)):
        return type(batch)([portable(x) for x in batch])
    return batch


@dataclass
class Fetcher:
    """Turns indices into a batch; for an iterable data set, an index list says only how many items."""

    dataset: Any
    collate: Callable[[Any], Any]
    batched: bool
    iterable: bool
    drop_last: bool

    def __post_init__(self) -> None:
        self.iterator: Any = None

    def fetch(self, indices: Any) -> Any:
        """The batch. StopIteration when an iterable data set is at its end."""
        if not self.iterable:
            if not self.batched:
                return self.collate(self.dataset[indices])
            take = getattr(self.dataset, "__getitems__", None)
            return self.collate(take(indices) if take else [self.dataset[i] for i in indices])
        if self.iterator is None:
            self.iterator = iter(self.dataset)
        if not self.batched:
            return self.collate(next(self.iterator))
        found = []
        for _ in indices:
            try:
                found.append(next(self.iterator))
            except StopIteration:
                break
        if not found or (self.drop_last and len(found) < len(indices)):
            raise StopIteration
        return self.collate(found)


class End:
    """An iterable data set has no more items in this worker."""


def work(
    fetcher: Fetcher, tasks: Any, results: Any, number: int, count: int, seed: int,
    init: Callable[[int], Any] | None,
) -> None:  # fmt: skip
    """Take (position, indices) from `tasks` and put (position, batch) into `results`, until told None."""
    global _info
    _info = WorkerInfo(number, count, seed, fetcher.dataset)
    where = f"in DataLoader worker process {number}"
    failed: Failure | None = None
    try:
        python_random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - user code in a worker may use NumPy's global generator
        random.manual_seed(seed)
        if init is not None:
            init(number)
    except Exception as error:
        failed = Failure(error, where)
    while True:
        task = tasks.get()
        if task is None:
            return
        position, indices = task
        answer: Any = failed
        if failed is None:
            try:
                answer = portable(fetcher.fetch(indices))
            except StopIteration:
                answer = End()
            except Exception as error:
                answer = Failure(error, where)
        results.put((position, number, answer))


__all__ = ["WorkerInfo", "get_worker_info"]
