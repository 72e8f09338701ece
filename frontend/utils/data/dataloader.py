"""`DataLoader`: batches of a data set, made here or by worker processes."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flambeau import evaluation, random
from flambeau.utils.data.collate import default_collate, default_convert
from flambeau.utils.data.dataset import IterableDataset
from flambeau.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler
from flambeau.utils.data.worker import End, Failure, Fetcher, work


class DataLoader:
    """Iterates over a data set in batches.

    With `num_workers` > 0, that many processes fetch and collate; batches still come in order, and a worker's exception
    is raised here with its traceback. `multiprocessing_context` names the start method ("spawn", "forkserver",
    "fork") or is a context; the default is Python's own, but never "fork", which does not go with running threads.
    """

    def __init__(
        self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None, sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None, num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None, pin_memory: bool = False, drop_last: bool = False,
        timeout: float = 0, worker_init_fn: Callable[[int], Any] | None = None, multiprocessing_context: Any = None,
        generator: Any = None, *, prefetch_factor: int | None = None, persistent_workers: bool = False,
    ) -> None:  # fmt: skip
        if num_workers < 0:
            raise ValueError(
                "num_workers option should be non-negative; use num_workers=0 to disable multiprocessing."
            )
        if timeout < 0:
            raise ValueError("timeout option should be non-negative")
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing."
                "let num_workers > 0 to enable multiprocessing, otherwise set prefetch_factor to None."
            )
        if persistent_workers and num_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        self.dataset, self.num_workers, self.timeout = dataset, num_workers, timeout
        self.prefetch_factor = 2 if prefetch_factor is None and num_workers else prefetch_factor
        self.worker_init_fn, self.multiprocessing_context = worker_init_fn, multiprocessing_context
        self.pin_memory, self.persistent_workers, self.generator = pin_memory, persistent_workers, generator
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError(
                "DataLoader with IterableDataset: expected unspecified shuffle, sampler and batch_sampler options"
            )
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last"
                )
            batch_size = None
        elif batch_size is None and drop_last:
            raise ValueError(
                "batch_size=None option disables auto-batching and is mutually exclusive with drop_last"
            )
        if sampler is None:
            if self._iterable:
                sampler = itertools.repeat(None)
            else:
                sampler = (
                    RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
                )
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last, self.sampler, self.batch_sampler = (
            batch_size,
            drop_last,
            sampler,
            batch_sampler,
        )
        batched = batch_sampler is not None
        self.collate_fn = collate_fn or (default_collate if batched else default_convert)
        self._workers: _Workers | None = None

    def _fetcher(self) -> Fetcher:
        batched = self.batch_sampler is not None
        return Fetcher(self.dataset, self.collate_fn, batched, self._iterable, self.drop_last)

    def _order(self) -> Iterator[Any]:
        return iter(self.sampler if self.batch_sampler is None else self.batch_sampler)

    def __len__(self) -> int:
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]
        length = len(self.dataset)
        if self.batch_size is None:
            return length
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers == 0:
            return self._here()
        if self._workers is not None and self.persistent_workers and self._workers.alive:
            return self._workers.run(self._order())
        workers = _Workers(self)
        if self.persistent_workers:
            self._workers = workers
        return workers.run(self._order())

    def _here(self) -> Iterator[Any]:
        fetcher = self._fetcher()
        for indices in self._order():
            try:
                batch = fetcher.fetch(indices)
            except StopIteration:
                return
            yield batch


class _Workers:
    """The processes of one loader, and the order of what they send."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.alive = loader, True
        context = _context(loader.multiprocessing_context)
        evaluation.sync()  # a data set's pending tensors are computed once, here, and not in every worker
        seed = int(random.randint(0, 2**62, (1,), generator=loader.generator).item())
        self.results = context.Queue()
        self.tasks = [context.Queue() for _ in range(loader.num_workers)]
        self.processes = []
        for i, tasks in enumerate(self.tasks):
            arguments = (
                loader._fetcher(), tasks, self.results, i, loader.num_workers, seed + i, loader.worker_init_fn,
            )  # fmt: skip
            process = context.Process(target=work, args=arguments, daemon=True)
            try:
                process.start()
            except BaseException:
                self.stop()
                raise
            self.processes.append(process)

    def run(self, order: Iterator[Any]) -> Iterator[Any]:
        """The batches of one pass, in order."""
        finished = False
        try:
            yield from self._pass(order)
            finished = True
        finally:
            # Workers of an unfinished pass still have tasks whose answers a next pass would take for its own.
            if not (finished and self.loader.persistent_workers and not self.loader._iterable):
                self.stop()

    def _pass(self, order: Iterator[Any]) -> Iterator[Any]:
        count = len(self.tasks)
        ahead = count * (self.loader.prefetch_factor or 2)
        arrived: dict[int, Any] = {}
        exhausted: set[int] = set()
        sent = next_out = turn = 0
        more = True
        while True:
            while more and sent - next_out < ahead and len(exhausted) < count:
                while turn % count in exhausted:
                    turn += 1
                try:
                    indices = next(order)
                except StopIteration:
                    more = False
                    break
                self.tasks[turn % count].put((sent, indices))
                sent, turn = sent + 1, turn + 1
            if next_out == sent:
                return
            while next_out not in arrived:
                position, worker, answer = self._receive()
                arrived[position] = answer
                if isinstance(answer, End):
                    exhausted.add(worker)
            answer = arrived.pop(next_out)
            next_out += 1
            if isinstance(answer, Failure):
                answer.reraise()
            if not isinstance(answer, End):
                yield answer

    def _receive(self) -> Any:
        """The next answer. RuntimeError if a worker died or none came within the timeout."""
        limit = time.monotonic() + self.loader.timeout if self.loader.timeout else None
        while True:
            try:
                return self.results.get(
                    timeout=0.5 if limit is None else max(0.01, min(0.5, limit - time.monotonic()))
                )
            except queue.Empty:
                dead = [p for p in self.processes if not p.is_alive()]
                if dead:
                    told = ", ".join(f"pid {p.pid} (exit code {p.exitcode})" for p in dead)
                    raise RuntimeError(f"DataLoader worker exited unexpectedly: {told}") from None
                if limit is not None and time.monotonic() >= limit:
                    raise RuntimeError(f"DataLoader timed out after {self.loader.timeout} seconds") from None

    def stop(self) -> None:
        """End the processes."""
        if not self.alive:
            return
        self.alive = False
        for tasks in self.tasks:
            tasks.cancel_join_thread()
            try:
                tasks.put(None)
            except (OSError, ValueError):
                pass
        self.results.cancel_join_thread()
        for process in self.processes:
            process.join(0.2)
            if process.is_alive():
                process.terminate()
                process.join(5)
        for channel in [*self.tasks, self.results]:
            channel.close()

    def __del__(self) -> None:
        try:
            self.stop()
        except Exception:  # the interpreter may be half gone
            pass


def _context(given: Any) -> Any:
    """The multiprocessing context asked for; by default a start method that is safe beside threads."""
    import multiprocessing  # late: it costs more than most of an import of flambeau, and few loaders have workers

    if isinstance(given, str):
        return multiprocessing.get_context(given)
    if given is not None:
        return given
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None or method == "fork":
        available = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in available else "spawn"
    return multiprocessing.get_context(method)


__all__ = ["DataLoader"]
