"""Data sets, samplers, batches, worker processes."""

import numpy as np
import pytest

import flambeau as fb
from flambeau.utils import data


class Squares(data.Dataset):
    def __init__(self, n, broken=-1):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise KeyError(f"no square of {i}")
        return fb.tensor([i * i]), i


class Stream(data.IterableDataset):
    def __iter__(self):
        info = data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(range(first, 10, step))


def test_batches_in_order_and_the_last_one():
    loader = data.DataLoader(data.TensorDataset(fb.arange(7), fb.arange(14).reshape(7, 2)), batch_size=3)
    batches = [(a.tolist(), b.shape) for a, b in loader]
    assert batches == [([0, 1, 2], (3, 2)), ([3, 4, 5], (3, 2)), ([6], (1, 2))]
    assert len(loader) == 3
    assert len(list(data.DataLoader(range(7), 3, drop_last=True))) == 2


def test_shuffle_is_a_permutation_that_the_generator_decides():
    def order(seed):
        generator = fb.Generator().manual_seed(seed)
        return [int(i) for i in data.DataLoader(range(50), None, shuffle=True, generator=generator)]

    assert sorted(order(1)) == list(range(50))
    assert order(1) == order(1) != order(2)


def test_samplers():
    assert list(data.BatchSampler(data.SequentialSampler(range(5)), 2, False)) == [[0, 1], [2, 3], [4]]
    assert sorted(data.SubsetRandomSampler([3, 5, 8])) == [3, 5, 8]
    assert set(data.WeightedRandomSampler([0.0, 1.0, 0.0, 3.0], 50)) <= {1, 3}
    drawn = list(data.RandomSampler(range(5), replacement=True, num_samples=40))
    assert len(drawn) == 40 and set(drawn) <= set(range(5))


def test_splits_subsets_and_concatenation():
    a, b = data.random_split(range(10), [0.7, 0.3])
    assert (len(a), len(b)) == (7, 3) and sorted([*a, *b]) == list(range(10))
    both = data.ConcatDataset([Squares(3), Squares(4)])
    assert len(both) == 7 and [both[i][1] for i in (2, 3, -1)] == [2, 0, 3]
    with pytest.raises(ValueError, match="does not equal the length"):
        data.random_split(range(10), [3, 3])


def test_collate():
    found = data.default_collate([{"x": np.float32(1), "y": (1, "a")}, {"x": np.float32(2), "y": (2, "b")}])
    assert found["x"].dtype is fb.float32 and found["x"].tolist() == [1.0, 2.0]
    assert found["y"][0].tolist() == [1, 2] and found["y"][1] == ["a", "b"]
    assert data.default_collate([0.5, 1.5]).dtype is fb.float64
    with pytest.raises(TypeError, match="batch must contain"):
        data.default_collate([object()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches_in_order(method):
    loader = data.DataLoader(Squares(11), 3, num_workers=2, multiprocessing_context=method)
    expected = [(a.tolist(), b.tolist()) for a, b in data.DataLoader(Squares(11), 3)]
    assert [(a.tolist(), b.tolist()) for a, b in loader] == expected


def test_a_workers_error_is_raised_here_with_its_traceback():
    loader = data.DataLoader(Squares(6, broken=4), 2, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(KeyError) as caught:
        list(loader)
    text = str(caught.value)
    assert "Caught KeyError in DataLoader worker process 0." in text
    assert "__getitem__" in text and "no square of 4" in text


def test_workers_share_an_iterable_data_set():
    loader = data.DataLoader(Stream(), 2, num_workers=2, multiprocessing_context="fork")
    assert sorted(int(i) for batch in loader for i in batch) == list(range(10))
    assert [b.tolist() for b in data.DataLoader(Stream(), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_workers_may_be_left_early_and_kept():
    loader = data.DataLoader(
        Squares(20), 2, num_workers=1, multiprocessing_context="fork", persistent_workers=True
    )
    first = [a.tolist() for a, _ in loader]
    kept = loader._workers
    assert [a.tolist() for a, _ in loader] == first and loader._workers is kept
    for _ in loader:
        break
    kept.stop()
    assert not any(p.is_alive() for p in kept.processes)


def test_contradictory_options():
    with pytest.raises(ValueError, match="mutually exclusive with shuffle"):
        data.DataLoader(range(3), sampler=[0], shuffle=True)
    with pytest.raises(ValueError, match="mutually exclusive with batch_size"):
        data.DataLoader(range(3), 2, batch_sampler=[[0]])
    with pytest.raises(ValueError, match="IterableDataset"):
        data.DataLoader(Stream(), shuffle=True)
