"""Recurrent layers (RNN, LSTM, GRU) and their cells.

A layer is one scan: the product of the whole input with its weights is one large product before the loop, and a step has
the product of the hidden state with its weights, and one pointwise kernel.
"""

from __future__ import annotations

import functools
import math
import numbers
import warnings
from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Value, untraced
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, i1, tensor
from flambeau.creation import empty, zeros
from flambeau.dtypes import dtype as DType
from flambeau.joining import cat, stack
from flambeau.looping import apply_scan
from flambeau.nn import functional as F
from flambeau.nn import init
from flambeau.nn.module import Module
from flambeau.nn.parameter import Parameter
from flambeau.nn.utils.rnn import PackedSequence, pad_packed, repack
from flambeau.tensor import Tensor, read, wrap

#: Rows of the weights for each unit, by mode.
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


# -- one step ----------------------------------------------------------------------------------------------------------


def _gates(x: Value, count: int, size: int) -> list[Value]:
    """The parts of the last axis, `size` long each."""
    return [build.slice_axis(x, 1, i * size, (i + 1) * size) for i in range(count)]


def _lstm(h: Value, c: Value, sums: Value, size: int) -> tuple[Value, Value]:
    i, f, g, o = _gates(sums, 4, size)
    c = build.add(
        build.mul(build.logistic(f), c),
        build.mul(build.logistic(i), build.tanh(g)),
    )
    return build.mul(build.logistic(o), build.tanh(c)), c


def _gru(h: Value, x: Value, inside: Value, size: int) -> Value:
    (rx, zx, nx), (rh, zh, nh) = _gates(x, 3, size), _gates(inside, 3, size)
    r, z = build.logistic(build.add(rx, rh)), build.logistic(build.add(zx, zh))
    n = build.tanh(build.add(nx, build.mul(r, nh)))
    return build.add(n, build.mul(z, build.sub(h, n)))


@functools.cache
def _step(
    mode: str, batch: Index, size: int, projected: int, biased: bool, masked: bool, element: ElementType
) -> Graph:
    """(h, [c], x's sums, [mask], weight_hh, [bias_hh], [weight_hr]) to the next h, [c], and the output h.

    The sums of x have all biases but bias_hh of a GRU, whose product is multiplied before it is added. Where the mask is
    false (behind the end of a packed sequence) the state stays.
    """

    def value(*shape: Index) -> Value:
        return Value(tensor(shape, element))

    gates = GATES[mode] * size
    width = projected or size
    with untraced():
        h, x, w = value(batch, width), value(batch, gates), value(gates, width)
        state, rest = [h], [w]
        inside = build.dot_general(h, w, ((1,), (1,)))
        if biased:
            bias = value(gates)
            rest.append(bias)
            inside = build.add(inside, build.broadcast_in_dim(bias, (batch, gates), (1,)))
        if mode == "LSTM":
            state.append(value(batch, size))
            after = list(_lstm(*state, build.add(x, inside), size))
            if projected:
                rest.append(value(projected, size))
                after[0] = build.dot_general(after[0], rest[-1], ((1,), (1,)))
        elif mode == "GRU":
            after = [_gru(h, x, inside, size)]
        else:
            sums = build.add(x, inside)
            after = [build.tanh(sums) if mode == "RNN_TANH" else build.maximum(sums, 0)]
        sequences = [x]
        if masked:
            mask = Value(tensor((batch,), i1))
            sequences.append(mask)
            after = [
                build.select(build.broadcast_in_dim(mask, build.shape_of(new), (0,)), new, old)
                for new, old in zip(after, state, strict=True)
            ]
        return Graph([*state, *sequences, *rest], [*after, after[0]], mode.lower())


def _run(
    mode: str, x: Tensor, state: list[Tensor], weights: dict[str, Tensor], mask: Tensor | None, reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    """One layer in one direction: x (T, N, features) and the state to the output (T, N, H) and the last state."""
    bias = weights.get("bias_ih")
    rest = [weights["weight_hh"]]
    if bias is not None:
        if mode == "GRU":
            rest.append(weights["bias_hh"])
        else:
            bias = bias + weights["bias_hh"]  # type: ignore[operator]
    projected = 0
    if "weight_hr" in weights:
        rest.append(weights["weight_hr"])
        projected = rest[-1].shape[0]
    sums = read(F.linear(x, weights["weight_ih"], bias))
    values = [read(t) for t in state]
    sequences = [sums] if mask is None else [sums, read(mask)]
    length, batch, gates = build.shape_of(sums)
    assert isinstance(gates, int)
    body = _step(
        mode, batch, gates // GATES[mode], projected, len(rest) > 1 + bool(projected), mask is not None,
        build.element_of(sums),
    )  # fmt: skip
    definition = Scan(body, length, len(values), len(sequences), reverse)
    *last, output = apply_scan(definition, [*values, *sequences, *[read(t) for t in rest]])
    return wrap(output, "Scan"), [wrap(v, "Scan") for v in last]


# -- layers ------------------------------------------------------------------------------------------------------------


class RNNBase(Module):
    """What RNN, LSTM and GRU share: parameters by PyTorch's names, layers, directions, dropout between layers."""

    __constants__ = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size",
    ]  # fmt: skip

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
        device: Any = None, dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:  # type: ignore[operator]
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        if not isinstance(hidden_size, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(hidden_size).__name__}")
        if hidden_size <= 0:
            raise ValueError("hidden_size must be greater than zero")
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if proj_size >= hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")
        self.mode, self.input_size, self.hidden_size, self.num_layers = (
            mode,
            input_size,
            hidden_size,
            num_layers,
        )
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        gates, width = GATES[mode] * hidden_size, proj_size or hidden_size
        directions = 2 if bidirectional else 1
        self._names: list[list[str]] = []
        for layer in range(num_layers):
            features = input_size if layer == 0 else width * directions
            for suffix in ("", "_reverse")[:directions]:
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (gates, features),
                    "weight_hh": (gates, width),
                }
                if bias:
                    shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                names = {f"{kind}_l{layer}{suffix}": shape for kind, shape in shapes.items()}
                for name, shape in names.items():
                    self.register_parameter(name, Parameter(empty(*shape, device=device, dtype=dtype)))
                self._names.append(list(names))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing: weights need no layout of their own here."""

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._names]

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.proj_size:
            text += f", proj_size={self.proj_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.batch_first is not False:
            text += f", batch_first={self.batch_first}"
        if self.dropout:
            text += f", dropout={self.dropout}"
        if self.bidirectional is not False:
            text += f", bidirectional={self.bidirectional}"
        return text

    def _layers(self, x: Tensor, states: list[Tensor], mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """All layers: x (T, N, features), states (layers * directions, N, width) to the output and the last states."""
        directions = 2 if self.bidirectional else 1
        last: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                weights = {name.partition("_l")[0]: getattr(self, name) for name in self._names[number]}
                state = [s[number] for s in states]  # type: ignore[index]
                output, after = _run(self.mode, x, state, weights, mask, direction == 1)
                outputs.append(output)
                for found, new in zip(last, after, strict=True):
                    found.append(new)
            x = outputs[0] if directions == 1 else cat(outputs, 2)
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, True)
        return x, [stack(found) for found in last]

    def _forward(self, input: Any, states: list[Tensor] | None) -> tuple[Any, list[Tensor]]:
        widths = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        if isinstance(input, PackedSequence):
            return self._packed(input, states, widths)
        if input.ndim not in (2, 3):
            raise ValueError(f"{self._get_name()}: Expected input to be 2D or 3D, got {input.ndim}D instead")
        batched = input.ndim == 3
        axis = 0 if self.batch_first and batched else 1
        if states is not None:
            self._check_ranks(states, batched)
        x = input if batched else input.unsqueeze(1)
        if states is not None and not batched:
            states = [s.unsqueeze(1) for s in states]  # type: ignore[attr-defined]
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if axis == 0:
            x = x.transpose(0, 1)
        states = self._checked(states, x.shape[1], widths, x)
        output, last = self._layers(x, states, None)
        if axis == 0:
            output = output.transpose(0, 1)  # type: ignore[attr-defined]
        if not batched:
            output, last = output.squeeze(1), [s.squeeze(1) for s in last]  # type: ignore[attr-defined]
        return output, last

    def _packed(
        self, input: PackedSequence, states: list[Tensor] | None, widths: list[int]
    ) -> tuple[PackedSequence, list[Tensor]]:
        x, mask = pad_packed(input)
        if states is not None and input.sorted_indices is not None:
            states = [s.index_select(1, input.sorted_indices) for s in states]  # type: ignore[attr-defined]
        states = self._checked(states, x.shape[1], widths, x)
        output, last = self._layers(x, states, mask)
        if input.unsorted_indices is not None:
            last = [s.index_select(1, input.unsorted_indices) for s in last]  # type: ignore[attr-defined]
        return repack(output, input), last

    def _check_ranks(self, states: list[Tensor], batched: bool) -> None:
        expected = 3 if batched else 2
        if any(s.ndim != expected for s in states):
            what = "hx" if len(states) == 1 else "hx and cx"
            raise RuntimeError(
                f"For {'batched' if batched else 'unbatched'} {expected}-D input, {what} should also be "
                f"{expected}-D but got {' and '.join(f'{s.ndim}-D' for s in states)} tensor"
            )

    def _checked(
        self, states: list[Tensor] | None, batch: Any, widths: list[int], like: Tensor
    ) -> list[Tensor]:
        """The given states, or zeros. RuntimeError if their shapes do not fit."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        shapes = [(count, batch, width) for width in widths]
        if states is None:
            return [zeros(*shape, dtype=like.dtype) for shape in shapes]
        for number, (state, shape) in enumerate(zip(states, shapes, strict=True)):
            if tuple(state.shape) != shape:
                what = "hidden" if len(states) == 1 else f"hidden[{number}]"
                raise RuntimeError(f"Expected {what} size {shape}, got {list(state.shape)}")
        return states


class RNN(RNNBase):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), or relu of it, over a sequence.

    Input (T, N, input_size), or (N, T, input_size) with `batch_first`, or (T, input_size), or a `PackedSequence`; hx
    (num_layers * directions, N, hidden_size), zeros if not given. Gives the output (T, N, directions * hidden_size) of
    the last layer and the last hidden states. All parameters start uniform in ±1 / sqrt(hidden_size).
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        output, (h,) = self._forward(input, None if hx is None else [hx])
        return output, h


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) over a sequence.

    i, f, o = sigmoid and g = tanh of W_ih x_t + b_ih + W_hh h_(t-1) + b_hh; c_t = f c_(t-1) + i g; h_t = o tanh(c_t),
    times W_hr with `proj_size`. Shapes as for `RNN`; hx is the pair (h_0, c_0), and the second result (h_n, c_n).
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype,
        )  # fmt: skip

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        output, (h, c) = self._forward(input, None if hx is None else list(hx))
        return output, (h, c)


class GRU(RNNBase):
    """Gated recurrent units (Cho et al., 2014) over a sequence.

    r, z = sigmoid of W_i x_t + b_i + W_h h_(t-1) + b_h; n = tanh(W_in x_t + b_in + r (W_hn h_(t-1) + b_hn));
    h_t = (1 - z) n + z h_(t-1). Shapes as for `RNN`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, device: Any = None, dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )  # fmt: skip

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        output, (h,) = self._forward(input, None if hx is None else [hx])
        return output, h


# -- cells -------------------------------------------------------------------------------------------------------------


class RNNCellBase(Module):
    """What the cells share: the parameters of one step, uniform in ±1 / sqrt(hidden_size) at first."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = num_chunks * hidden_size
        self.weight_ih = Parameter(empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = Parameter(empty(rows, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(
                name, Parameter(empty(rows, device=device, dtype=dtype)) if bias else None
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", bias={self.bias}")

    def _one_step(self, mode: str, input: Tensor, states: list[Tensor] | None) -> list[Tensor]:
        name = self._get_name()
        if input.ndim not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.ndim}D instead")
        if states is not None and any(s.ndim not in (1, 2) for s in states):
            raise ValueError(f"{name}: Expected hidden to be 1D or 2D")
        batched = input.ndim == 2
        x = input if batched else input.unsqueeze(0)  # type: ignore[attr-defined]
        if x.shape[1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}"
            )
        if states is None:
            count = 2 if mode == "LSTM" else 1
            states = [zeros(x.shape[0], self.hidden_size, dtype=x.dtype)] * count
        elif not batched:
            states = [s.unsqueeze(0) for s in states]  # type: ignore[attr-defined]
        for state in states:
            if tuple(state.shape) != (x.shape[0], self.hidden_size):
                raise RuntimeError(
                    f"hidden has inconsistent hidden_size: got {list(state.shape)}, expected "
                    f"{[x.shape[0], self.hidden_size]}"
                )
        weights = dict(self.named_parameters(recurse=False))
        _, after = _run(mode, x.unsqueeze(0), states, weights, None, False)  # type: ignore[attr-defined, arg-type]
        return after if batched else [s.squeeze(0) for s in after]  # type: ignore[attr-defined]


class RNNCell(RNNCellBase):
    """One step of `RNN`: input (N, input_size) or (input_size), hidden (N, hidden_size), zeros if not given."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        mode = f"RNN_{self.nonlinearity.upper()}"
        return self._one_step(mode, input, None if hx is None else [hx])[0]


class LSTMCell(RNNCellBase):
    """One step of `LSTM`: input (N, input_size), the pair (h, c) of (N, hidden_size); gives the next pair."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._one_step("LSTM", input, None if hx is None else list(hx))
        return h, c


class GRUCell(RNNCellBase):
    """One step of `GRU`: input (N, input_size), hidden (N, hidden_size)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._one_step("GRU", input, None if hx is None else [hx])[0]


__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]
