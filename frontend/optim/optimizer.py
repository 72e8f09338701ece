"""What all optimizers share: parameter groups, state, hooks, state dictionaries."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flambeau import evaluation
from flambeau.autograd import enable_grad, no_grad
from flambeau.compiler.ir import types as ir
from flambeau.creation import from_array
from flambeau.handles import RemovableHandle
from flambeau.optim.updates import Updates
from flambeau.tensor import Tensor, wrap

required = object()


class Optimizer:
    """Base of optimizers. A subclass defines `_update`, which changes one group's parameters in place; what it does
    depends on the group's options, on which parameters there are, and on tensors (`updates`).

    `step` records the update of everything and evaluates it at once. State tensors are made with known content, so a
    step that is being compiled finds them as inputs.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, "
                "but got torch.FloatTensor"
            )
        self.defaults = defaults
        self.state: dict[Any, Any] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._pre_hooks: dict[int, Any] = OrderedDict()
        self._post_hooks: dict[int, Any] = OrderedDict()
        self._updates = Updates()
        listed = list(params)
        if not listed:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(listed[0], dict):
            listed = [{"params": listed}]
        for group in listed:
            self.add_param_group(dict(group))

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pre_hooks, self._post_hooks = OrderedDict(), OrderedDict()
        self._updates = Updates()

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            text += "".join(f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params")
        return text + ")"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own. ValueError if one is in another group already."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets "
                "will change between runs. Please use a list instead."
            )
        named = [p if isinstance(p, tuple) else (None, p) for p in params]
        for _, p in named:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}"
                )
            if not p.is_leaf:
                raise ValueError("can't optimize a non-leaf Tensor")
        group = {**param_group, "params": [p for _, p in named]}
        if any(name is not None for name, _ in named):
            group["param_names"] = [name for name, _ in named]
        for name, default in self.defaults.items():
            if default is required and name not in group:
                raise ValueError(
                    f"parameter group didn't specify a value of required optimization parameter {name}"
                )
            group.setdefault(name, default)
        known = {id(p) for g in self.param_groups for p in g["params"]}
        if any(id(p) in known for p in group["params"]):
            raise ValueError("some parameters appear in more than one parameter group")
        if len({id(p) for p in group["params"]}) != len(group["params"]):
            raise ValueError("some parameters appear twice in one parameter group")
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or make them zero."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if set_to_none:
                    p.grad = None
                else:
                    p.grad = p.grad.detach()
                    p.grad.zero_()

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Before each step: ``hook(optimizer, args, kwargs)``."""
        return RemovableHandle(self._pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """After each step: ``hook(optimizer, args, kwargs)``."""
        return RemovableHandle(self._post_hooks, hook)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the parameters' gradients; `closure` computes the loss again first and is returned."""
        arguments = () if closure is None else (closure,)
        for hook in list(self._pre_hooks.values()):
            hook(self, arguments, {})
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._updates.run(self._update, group, params, self.state)
        if evaluation.state.trace is None:
            evaluation.sync()
        for hook in list(self._post_hooks.values()):
            hook(self, arguments, {})
        return loss

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        raise NotImplementedError

    # -- for subclasses ------------------------------------------------------------------------------------------------
    def _option(self, group: dict[str, Any], name: str) -> Any:
        """A number of the group that may change between steps: one that a compiled step asks for at every call."""
        if evaluation.state.trace is None or isinstance(group[name], Tensor):
            return group[name]

        def source() -> Any:
            return group[name]

        source.__name__ = name  # what an exported step calls it
        return wrap(evaluation.scalar_provider(source, ir.f64))

    def _made(self, array: Any, element: Any) -> Tensor:
        """State with known content. It is no part of a running trace: the compiled step must find it as an input."""
        trace, evaluation.state.trace = evaluation.state.trace, None
        try:
            return from_array(array, element)
        finally:
            evaluation.state.trace = trace

    def _zeros(self, p: Tensor) -> Tensor:
        """State of a parameter's shape and dtype."""
        return self._made(np.zeros(tuple(p.shape), p.dtype.numpy), p.dtype.element)

    def _counted(self, params: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any], Any]]:
        """Each parameter, its state and its step count as a tensor, moved on by one.

        Parameters that have always been updated together share one count, so it is advanced once and not once a parameter.
        """
        self._separate(params)
        fresh: Tensor | None = None
        moved: set[int] = set()
        for p in params:
            state = self.state[p]
            if "step" not in state:
                if fresh is None:
                    fresh = self._made(np.zeros((), np.float32), ir.f32)
                state["step"] = fresh
                self._begin(p, state)
            step = state["step"]
            if id(step) not in moved:
                moved.add(id(step))
                step.add_(1)
            yield p, state, step

    def _separate(self, params: Sequence[Any]) -> None:
        """Gives those of `params` a count of their own that share one with a parameter that is not among them."""
        sharing = Counter(id(s["step"]) for s in self.state.values() if "step" in s)
        here = Counter(id(self.state[p]["step"]) for p in params if "step" in self.state[p])
        trace, evaluation.state.trace = evaluation.state.trace, None
        try:
            own: dict[int, Tensor] = {}
            for p in params:
                step = self.state[p].get("step")
                if step is None or here[id(step)] == sharing[id(step)]:
                    continue
                if id(step) not in own:
                    own[id(step)] = from_array(np.array(step.item(), np.float32), ir.f32)
                self.state[p]["step"] = own[id(step)]
        finally:
            evaluation.state.trace = trace

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        """Make a parameter's state."""

    # -- state ---------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The state by the parameters' positions, and the groups' options."""
        order: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                order.setdefault(id(p), len(order))
            options = {k: v for k, v in group.items() if k != "params"}
            groups.append({**options, "params": [order[id(p)] for p in group["params"]]})
        state = {(order[id(p)] if isinstance(p, Tensor) else p): dict(s) for p, s in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave. ValueError if the groups do not match."""
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(
            len(mine["params"]) != len(theirs["params"]) for mine, theirs in zip(self.param_groups, groups)
        ):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
            )
        by_number: dict[Any, Any] = {}
        for mine, theirs in zip(self.param_groups, groups):
            by_number.update(zip(theirs["params"], mine["params"]))
        self.state = defaultdict(dict)
        steps: dict[float, Tensor] = {}
        for number, entries in state_dict["state"].items():
            p = by_number.get(number)
            if p is None:
                self.state[number] = copy.deepcopy(entries)
                continue
            self.state[p] = {k: self._loaded(k, v, p, steps) for k, v in entries.items()}
        for mine, theirs in zip(self.param_groups, groups):
            mine.update({k: copy.deepcopy(v) for k, v in theirs.items() if k != "params"})
        if evaluation.state.trace is None:
            evaluation.sync()

    def _loaded(self, key: str, value: Any, p: Tensor, steps: dict[float, Tensor]) -> Any:
        if key == "step":
            count = float(value)
            if count not in steps:
                steps[count] = from_array(np.array(count, np.float32), ir.f32)
            return steps[count]
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        found: Any = value.detach().clone()  # type: ignore[attr-defined]
        return found.to(p.dtype) if p.is_floating_point() and found.is_floating_point() else found


def gradient_of(p: Any, maximize: bool) -> Any:
    """The gradient to go down."""
    return -p.grad if maximize else p.grad


def check(condition: bool, what: str, value: Any) -> None:
    """ValueError as PyTorch's unless `condition` holds."""
    if not condition:
        raise ValueError(f"Invalid {what}: {value}")
