"""Workloads as the files that peers without PyTorch's interface run: ONNX, OpenVINO's, and a list of ATen operations.

All three start from PyTorch, in a process of its own, so that a peer's process has the peer alone.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import CONVERTED, INFERENCE_ONLY, Skipped
from benchmarks.peers.program import Program, Ref
from benchmarks.workloads import Workload
from benchmarks.workloads.base import Gradient, Step, Update


class _Function(torch.nn.Module):
    """A function as a module, as exporters want it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class _Loss(torch.nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.net, self.loss = step.net, step.loss

    def forward(self, *inputs: Any) -> Any:
        return self.loss(self.net, *inputs)


def convert(workload: Workload, folder: Path, peers: list[str]) -> dict[str, str]:
    """Write a file for each of the peers; gives those that cannot have one, and why."""
    wanted = [p for p in peers if p in CONVERTED]
    if not wanted:
        return {}
    torch.set_grad_enabled(True)
    if workload.eager:
        return dict.fromkeys(wanted, "the workload is about calls that are not compiled")
    prepared = workload.setup(torch)
    tensors = [torch.from_numpy(a) for a in workload.arrays()]
    if workload.dtype:
        tensors = [t.to(getattr(torch, workload.dtype)) if t.is_floating_point() else t for t in tensors]
    why = {}
    writers = {"onnxruntime": _onnx, "openvino": _openvino, "jax": _program}
    for peer in wanted:
        try:
            if peer in INFERENCE_ONLY and isinstance(prepared, (Gradient, Step, Update)):
                raise Skipped("inference only")
            if peer in INFERENCE_ONLY and workload.dtype:
                raise Skipped(f"no {workload.dtype} on CPUs")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                writers[peer](prepared, tensors, folder)
        except Skipped as reason:
            why[peer] = str(reason)
        except Exception as error:
            why[peer] = f"conversion: {type(error).__name__}: {error}".splitlines()[0][:200]
    return why


def _module(prepared: Any) -> torch.nn.Module:
    return prepared if isinstance(prepared, torch.nn.Module) else _Function(prepared).eval()


def _onnx(prepared: Any, tensors: list[Any], folder: Path) -> None:
    torch.onnx.export(
        _module(prepared),
        tuple(tensors),
        str(folder / "onnxruntime.onnx"),
        # The exporter by tracing: recurrent layers stay one operation, and the runtime's own optimizer does the rest.
        dynamo=False,
        do_constant_folding=False,
        opset_version=20,
        input_names=[f"x{number}" for number in range(len(tensors))],
    )


def _openvino(prepared: Any, tensors: list[Any], folder: Path) -> None:
    import openvino

    model = openvino.convert_model(
        _module(prepared), example_input=tuple(tensors), input=[tuple(t.shape) for t in tensors]
    )
    openvino.save_model(model, str(folder / "openvino.xml"), compress_to_fp16=False)


def _program(prepared: Any, tensors: list[Any], folder: Path) -> None:
    if isinstance(prepared, Update):
        names = [f"p{number}" for number in range(len(prepared.parameters))]
        weights = {n: p.detach().numpy() for n, p in zip(names, prepared.parameters, strict=True)}
        gradients = tuple(p.grad.numpy() for p in prepared.parameters)
        program = Program(
            (), (), (), weights, {}, optimizer=_optimizer(prepared.optimizer), gradients=gradients
        )
    elif isinstance(prepared, Gradient):
        program = _exported(_Function(prepared.function), tensors[:-1], wanted=prepared.wanted)
    elif isinstance(prepared, Step):
        program = _exported(_Loss(prepared), tensors, optimizer=_optimizer(prepared.optimizer))
    else:
        program = _exported(_module(prepared), tensors)
    (folder / "jax.program").write_bytes(pickle.dumps(program))


def _optimizer(optimizer: Any) -> tuple[str, dict[str, Any]]:
    return type(optimizer).__name__, dict(optimizer.defaults)


def _exported(module: torch.nn.Module, tensors: list[Any], **more: Any) -> Program:
    exported = torch.export.export(module, tuple(tensors), strict=False)
    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    arrays: dict[str, Any] = {}
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        arrays |= {name: state[target].detach().numpy() for name, target in names.items()}
    weights = {n: a for n, a in arrays.items() if n in signature.inputs_to_parameters}
    nodes = tuple(
        (n.name, _operation(n.target), _plain(n.args), _plain(n.kwargs))
        for n in exported.graph.nodes
        if n.op == "call_function"
    )
    (results,) = [n.args[0] for n in exported.graph.nodes if n.op == "output"]
    return Program(
        nodes,
        tuple(signature.user_inputs),
        tuple(n.name for n in results),
        weights,
        {n: a for n, a in arrays.items() if n not in weights},
        **more,
    )


def _operation(target: Any) -> str:
    """``aten.add.Tensor`` is ``add``: arguments tell overloads apart."""
    name = str(target) if isinstance(target, torch._ops.OpOverload) else target.__name__
    return name.split(".")[1] if name.startswith("aten.") else name


def _plain(value: Any) -> Any:
    """Arguments without PyTorch's types."""
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
