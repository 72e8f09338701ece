"""Optimizers' updates, recorded in one step once it is known what they do.

An update reads and writes parameters, gradients and state, and does the same at each step. So it is run once on
placeholders, and what it did is kept as a graph (`replay`), with where the graph's inputs come from and its results go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flambeau import evaluation
from flambeau.compiler.dialects.graph.autograd_ops import StopGradient
from flambeau.compiler.ir.core import Graph, Value
from flambeau.evaluation import state
from flambeau.recent import Recent
from flambeau.replay import Replay
from flambeau.storage import Cell
from flambeau.tensor import Tensor
from flambeau.tracing import InputTrace

#: Updates that differ in options, in which parameters have gradients, or in the state: so many are kept for each group.
KEPT = 4
#: Steps that an update has to be good for on average, or updates are recorded as they are.
WORTH = 8

Update = Callable[[dict[str, Any], list[Any]], None]
States = dict[Any, dict[str, Any]]

_REPLAYS: Recent[Graph, Replay] = Recent(256)


class Updates:
    """The updates of an optimizer that are known."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Update]] = {}
        self._traced = self._replayed = 0

    def run(self, update: Update, group: dict[str, Any], params: list[Tensor], states: States) -> None:
        """Does what ``update(group, params)`` does: changes `params` in place, and what belongs to them in `states`."""
        if state.trace is not None:
            update(group, params)
            return
        known = self._known.setdefault(id(group), [])
        for kept in known:
            if kept.group is group and kept.replay(params, states):
                self._replayed += 1
                return
        if self._traced * WORTH > self._replayed + KEPT * WORTH:
            update(group, params)
            return
        self._traced += 1
        before = _contents(params, states)
        found = _Update.of(update, group, params, states)
        if found is None or not found.replay(params, states, first=True):
            update(group, params)
        elif before == _contents(params, states):
            known.append(found)
            del known[:-KEPT]


def _contents(params: list[Tensor], states: States) -> list[Any]:
    """Which state there is, by identity."""
    return [[(key, id(x)) for key, x in states.get(p, {}).items()] for p in params]


class _Update:
    """What one update did.

    `inputs`: of each of the graph's inputs, a tensor, or the number of the parameter whose gradient it is, and its type.
    `results`: pairs of an input whose cell is written and the number of the graph's result, or (negative: ~number) of the
    input that is written there.
    """

    __slots__ = ("group", "options", "params", "states", "inputs", "numbers", "results", "graph")

    @staticmethod
    def of(
        update: Update,
        group: dict[str, Any],
        params: list[Tensor],
        states: States,
    ) -> _Update | None:
        """Runs the update on placeholders: nothing changes but that state which was not there is made. None where it cannot
        be kept."""
        if any(isinstance(x, Tensor) for x in group.values()):
            return None
        found = _Update()
        found.group, found.options, found.params = group, _options(group), list(params)
        trace, pending = InputTrace(), state.now.pending
        count = len(pending)
        state.trace = trace
        try:
            update(group, params)
            written = [(cell, trace.cell(cell).value) for cell in trace.inputs]
        finally:
            state.trace = None
            del pending[count:]
        found.states = [(states.get(p), list(states.get(p, {}).values())) for p in params]
        tensors = [*params, *[x for _, values in found.states for x in values if isinstance(x, Tensor)]]
        places: dict[Cell, Tensor | int] = {p._grad._cell: i for i, p in enumerate(params)}
        places.update((t._cell, t) for t in tensors)
        if trace.gradients or any(cell not in places for cell in trace.inputs):
            return None
        found.inputs = [(places[cell], p.type, p.requires_grad) for cell, (_, p) in trace.inputs.items()]
        found.numbers = [(source, element) for _, source, element in trace.providers]
        parameters = [p for _, p in trace.inputs.values()] + [v for v, _, _ in trace.providers]
        made: dict[Value, int] = {}
        found.results = []
        for number, (_, value) in enumerate(written):
            if value is parameters[number]:
                continue
            while isinstance(value.definition, StopGradient):
                value = value.sources[0]
            result = ~parameters.index(value) if value in parameters else made.setdefault(value, len(made))
            found.results.append((number, result))
        graph = Graph(parameters, list(made))
        known = _REPLAYS.get(graph)
        if known is None:
            known = Replay(parameters, list(made))
            _REPLAYS[known.graph] = known
        found.graph = known
        return found

    def replay(self, params: Sequence[Tensor], states: States, first: bool = False) -> bool:
        """The same again. False, and nothing has happened, if it may be another update now."""
        if not first and not self._fits(params, states):
            return False
        cells: list[Cell] = []
        values: list[Value] = []
        for tensor, kind, flows in self.inputs:
            if tensor.__class__ is int:
                tensor = params[tensor]._grad  # type: ignore[index]
            cell: Cell = tensor._cell  # type: ignore[union-attr]
            value = cell.value
            if (
                tensor._chain is not None  # type: ignore[union-attr]
                or cell.parent is not None
                or value.type is not kind
                or value.requires_grad is not flows
            ):
                return False
            cells.append(cell)
            values.append(value)
        if len(set(cells)) != len(cells):
            return False
        for source, element in self.numbers:
            values.append(evaluation.leaf(evaluation.array_of(source(), element), element))
        made = self.graph.record(tuple(values), state.now)
        for number, result in self.results:
            cell = cells[number]
            if result < 0:
                cell.write(values[~result], False)
                continue
            new, old = made[result], cell.value
            if old.requires_grad:  # what a write without history does to a leaf
                new.requires_grad, new.hooks = True, old.hooks
            cell.value = new
            cell.version += 1
            evaluation.note(cell)
        return True

    def _fits(self, params: Sequence[Tensor], states: States) -> bool:
        if len(params) != len(self.params) or self.options != _options(self.group):
            return False
        for p, known, (entries, content) in zip(params, self.params, self.states):
            if p is not known or states.get(p) is not entries:
                return False
            if entries is not None:
                if len(entries) != len(content):
                    return False
                for x, y in zip(entries.values(), content):
                    if x is not y:
                        return False
        return True


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """What the graph has as it is: all options but the learning rate, which every step asks for."""
    return {key: x for key, x in group.items() if key != "params" and key != "lr"}
