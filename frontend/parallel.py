"""How many threads compiled code uses."""

from __future__ import annotations


def set_num_threads(number: int) -> None:
    """Threads that a parallel loop of this process may use, the caller's included. ValueError unless at least 1."""
    from flambeau.runtime import threads  # with the engine: not needed before something runs

    threads.set_num_threads(number)


def get_num_threads() -> int:
    """The number that `set_num_threads` set; the CPUs that this process may run on, if it did not."""
    from flambeau.runtime import threads

    return threads.num_threads()


__all__ = ["get_num_threads", "set_num_threads"]
