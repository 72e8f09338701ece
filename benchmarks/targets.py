"""What each workload is to reach, and which do not: the goals are stated here once, whatever a run finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.machine import Machine
from benchmarks.runner import Result
from benchmarks.workloads import Readiness, Workload

#: Of a machine's limit: products by the beginning of the name, the first that fits; then everything that memory bounds.
SHARES = (
    *[(f"gemm.{size}", 0.90) for size in ("512", "1024", "2048", "1000", "1023")],
    *[(f"gemm.{size}", 0.80) for size in ("256", "32x4096")],
    ("gemm.96x", 0.75),
    ("memory.", 0.85),
)
#: Peers' times over ours: every group's against the best peer, and a training step's against each.
BEST_PEER = {"gemm": 1.0, "memory": 1.0, "conv": 1.0, "inference": 1.0}
TRAINING = {"torch": 1.5, "torch.compile": 1.3, "jax": 1.3}
#: Seconds. Python's are the budgets of the design: an operation recorded; three evaluated; a call with one argument.
SECONDS = {
    "ready.import": 60e-3,
    "ready.resnet50_cold": 5.0,
    "ready.gpt2_cold": 5.0,
    "ready.resnet50_warm": 0.5,
    "ready.gpt2_warm": 0.5,
    "overhead.record": 5e-6,
    "overhead.two_forward": 23e-6,
    "overhead.two_compiled": 5.1e-6,
}
#: One thread's time over that of two, where arithmetic and not memory is the limit.
SCALING = 1.8
#: Operations of arithmetic that are worth a second thread.
WORTH_SHARING = 20e6


@dataclass(frozen=True)
class Missed:
    """A workload that is behind a target: what was wanted and what was found, in words."""

    workload: str
    threads: int
    wanted: str
    found: str


def share(workload: Workload, seconds: float, threads: int, machine: Machine) -> float | None:
    """The part of the machine's arithmetic, or of its traffic, that was reached; None if the workload counts neither."""
    limits = machine.of(threads)
    if workload.work:
        return workload.work / seconds / 1e9 / limits.peak(workload.arithmetic)
    if workload.traffic:
        return limits.moving(workload.traffic, workload.read) / seconds
    return None


def ratios(result: Result) -> dict[str, float]:
    """How many times as long as we each peer takes."""
    seconds = result["seconds"]
    if "flambeau" not in seconds:
        return {}
    ours = median(seconds["flambeau"])
    return {n: median(s) / ours for n, s in seconds.items() if n != "flambeau"}


def missed(
    results: Sequence[Result], machines: Sequence[Machine], known: dict[str, Workload | Readiness]
) -> list[Missed]:
    """What is behind its targets, in order of the results. `machines`: of each result."""
    alone = {r["workload"]: _ours(r) for r in results if r["threads"] == 1}
    found = []
    for result, machine in zip(results, machines, strict=True):
        name, threads = result["workload"], result["threads"]
        workload = known.get(name)
        if workload is None:
            continue
        if _ours(result) is None:
            found.append(Missed(name, threads, "a right result", "failed"))
            continue
        behind = [*_speed(result, workload, machine), *_scaling(result, workload, alone), *_cost(result)]
        found += [Missed(name, threads, *words) for words in behind]
    return found


def _ours(result: Result) -> float | None:
    rounds = result["seconds"].get("flambeau")
    return median(rounds) if rounds else None


def _speed(result: Result, workload: Workload | Readiness, machine: Machine) -> Iterator[tuple[str, str]]:
    ours, name = median(result["seconds"]["flambeau"]), result["workload"]
    if isinstance(workload, Workload):
        least = next((s for beginning, s in SHARES if name.startswith(beginning)), None)
        reached = share(workload, ours, result["threads"], machine)
        if least is not None and reached is not None and reached < least:
            yield f"{100 * least:.0f} % of the limit", f"{100 * reached:.0f} %"
    if name in SECONDS and ours > SECONDS[name]:
        unit, factor = ("ms", 1e3) if SECONDS[name] >= 1e-3 else ("µs", 1e6)
        yield f"{SECONDS[name] * factor:g} {unit}", f"{ours * factor:.3g} {unit}"
    times = ratios(result)
    if workload.group == "training":
        for peer, least in TRAINING.items():
            if peer in times and times[peer] < least:
                yield f"{least:g} × {peer}", f"{times[peer]:.2f}"
    least = BEST_PEER.get(workload.group)
    if least is not None and times:
        peer = min(times, key=times.__getitem__)
        if times[peer] < least:
            yield f"no slower than {peer}", f"{times[peer]:.2f}"


def _scaling(
    result: Result, workload: Workload | Readiness, alone: dict[str, float | None]
) -> Iterator[tuple[str, str]]:
    ours, one = median(result["seconds"]["flambeau"]), alone.get(result["workload"])
    if result["threads"] != 2 or one is None or workload.work < WORTH_SHARING:
        return
    if one / ours < SCALING:
        yield f"{SCALING:g} × one thread", f"{one / ours:.2f}"


def _cost(result: Result) -> Iterator[tuple[str, str]]:
    """Errors and memory: no more than PyTorch's."""
    errors = {n: f"{e:.0e}" for n, e in result["errors"].items()}  # one digit: what lies within it is chance
    if {"flambeau", "torch"} <= errors.keys() and float(errors["flambeau"]) > float(errors["torch"]):
        yield f"an error of at most {errors['torch']}", errors["flambeau"]
    memory = {n: m for n, m in result["memory"].items() if "running" in m}
    if not {"flambeau", "torch"} <= memory.keys():
        return
    for when, said in (("first", "first call"), ("running", "later calls")):
        ours, theirs = memory["flambeau"][when], memory["torch"][when]
        if ours > theirs:
            yield f"at most PyTorch's {theirs >> 20} MB, {said}", f"{ours >> 20} MB"
