"""JAX: a workload's operations interpreted once, while `jax.jit` traces; gradients and updates are JAX's own."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import aten
from benchmarks.peers.program import Program, Ref
from benchmarks.workloads import Workload

Arrays = dict[str, Any]


class Jax:
    def __init__(self, threads: int) -> None:
        # XLA takes as many threads as the process may use processors, at the first use.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        jax.devices("cpu")

    def load(self, workload: Workload, folder: Path) -> Callable[[], Any]:
        program: Program = pickle.loads((folder / "jax.program").read_bytes())
        dtype = workload.dtype
        inputs = [jnp.asarray(a) for a in workload.arrays()]
        if dtype:
            inputs = [x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs]
        weights = {n: jnp.asarray(a) for n, a in program.weights.items()}
        constants = {n: jnp.asarray(a) for n, a in program.constants.items()}
        if program.optimizer is not None:
            return _training(program, weights, constants, inputs)
        if program.wanted is not None:
            return _gradient(program, program.wanted, inputs)

        @jax.jit
        def forward(weights: Arrays, constants: Arrays, inputs: list[Any]) -> Any:
            return run(program, weights, constants, inputs)[0]

        return lambda: jax.block_until_ready(forward(weights, constants, inputs))

    def arrays(self, result: Any) -> list[Any]:
        return [np.asarray(a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a) for a in result]


def run(
    program: Program, weights: Arrays, constants: Arrays, inputs: list[Any]
) -> tuple[tuple[Any, ...], Arrays]:
    """Results, and the buffers after the run: batch normalisation in training moves its running statistics."""
    known = {**weights, **constants, **dict(zip(program.inputs, inputs, strict=True))}
    moved = dict(constants)

    def value(x: Any) -> Any:
        if isinstance(x, Ref):
            return known[x.name]
        return tuple(value(v) for v in x) if isinstance(x, tuple) else x

    for name, operation, arguments, named in program.nodes:
        if operation == "add_" and arguments[0].name in moved:  # a counter of batches
            moved[arguments[0].name] = known[arguments[0].name] + arguments[1]
            continue
        given = [value(a) for a in arguments]
        if operation == "batch_norm" and given[5]:
            mean, var = arguments[3].name, arguments[4].name
            moved[mean], moved[var] = aten.running(given[0], given[3], given[4], given[6])
        known[name] = aten.OPERATIONS[operation](*given, **named)
    return tuple(known[name] for name in program.outputs), moved


def _gradient(program: Program, wanted: int, inputs: list[Any]) -> Callable[[], Any]:
    @jax.jit
    def gradient(inputs: list[Any], cotangent: Any) -> Any:
        def function(x: Any) -> Any:
            return run(program, {}, {}, [*inputs[:wanted], x, *inputs[wanted + 1 :]])[0][0]

        return jax.vjp(function, inputs[wanted])[1](cotangent)

    return lambda: jax.block_until_ready(gradient(inputs[:-1], inputs[-1]))


def _training(program: Program, weights: Arrays, constants: Arrays, inputs: list[Any]) -> Callable[[], Any]:
    assert program.optimizer is not None
    name, options = program.optimizer
    update, slots = UPDATES[name]
    # Weights, buffers and moments are given away at each step, so that the new ones take their memory.
    state: list[Any] = [weights, constants, [jax.tree.map(jnp.zeros_like, weights) for _ in range(slots)]]
    state.append(jnp.zeros((), jnp.float32))  # steps so far
    fixed = {n: jnp.asarray(g) for n, g in zip(weights, program.gradients)}

    def loss(weights: Arrays, constants: Arrays, inputs: list[Any]) -> Any:
        (result,), moved = run(program, weights, constants, inputs)
        return result, moved

    def step(
        weights: Arrays,
        constants: Arrays,
        moments: list[Arrays],
        count: Any,
        inputs: list[Any],
        fixed: Arrays,
    ) -> Any:
        if fixed:
            result, moved, gradients = None, constants, fixed
        else:
            (result, moved), gradients = jax.value_and_grad(loss, has_aux=True)(weights, constants, inputs)
        count = count + 1
        done = {
            n: update(w, gradients[n], [m[n] for m in moments], count, options) for n, w in weights.items()
        }
        weights = {n: new for n, (new, _) in done.items()}
        moments = [{n: slots[number] for n, (_, slots) in done.items()} for number in range(len(moments))]
        return result, weights, moved, moments, count

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))

    def call() -> Any:
        result, *after = compiled(*state, inputs, fixed)
        state[:] = after
        jax.block_until_ready(state)
        return [next(iter(state[0].values())) if result is None else result]

    return call


def _sgd(w: Any, g: Any, moments: list[Any], count: Any, options: dict[str, Any]) -> tuple[Any, list[Any]]:
    (velocity,) = moments
    velocity = options["momentum"] * velocity + g
    return w - options["lr"] * velocity, [velocity]


def _adam(w: Any, g: Any, moments: list[Any], count: Any, options: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Adam as PyTorch has it; with decoupled weight decay, which Adam's default is without. Kingma and Ba 2015."""
    (b1, b2), (first, second) = options["betas"], moments
    w = w * (1 - options["lr"] * options["weight_decay"])
    first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
    scale = jnp.sqrt(second / (1 - b2**count)) + options["eps"]
    return w - options["lr"] * first / (1 - b1**count) / scale, [first, second]


#: The rule of an optimizer, and how many moments it keeps.
UPDATES = {"SGD": (_sgd, 1), "Adam": (_adam, 2), "AdamW": (_adam, 2)}
