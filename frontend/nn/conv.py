"""Convolution layers. Weights and biases start uniform in ±1 / sqrt(fan_in)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from flambeau.creation import empty
from flambeau.dtypes import dtype as DType
from flambeau.nn import functional as F
from flambeau.nn import init
from flambeau.nn.functional.common import each
from flambeau.nn.module import Module
from flambeau.nn.parameter import Parameter
from flambeau.tensor import Tensor

_MODES = ("zeros", "reflect", "replicate", "circular")


class _Convolution(Module):
    rank: ClassVar[int]
    transposed: ClassVar[bool] = False

    def _set(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, output_padding: Any,
        dilation: Any, groups: int, bias: bool, padding_mode: str, device: Any, dtype: DType | None,
    ) -> None:  # fmt: skip
        if groups <= 0:
            raise ValueError("groups must be a positive integer")
        if in_channels % groups != 0:
            raise ValueError("in_channels must be divisible by groups")
        if out_channels % groups != 0:
            raise ValueError("out_channels must be divisible by groups")
        if padding_mode not in _MODES:
            raise ValueError(
                f"padding_mode must be one of {set(_MODES)}, but got padding_mode='{padding_mode}'"
            )
        rank = self.rank
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = each(kernel_size, rank), each(stride, rank)
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"Invalid padding string {padding!r}, should be one of {{'valid', 'same'}}")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")
            self.padding: Any = padding
        else:
            self.padding = each(padding, rank)
        self.dilation, self.output_padding = each(dilation, rank), each(output_padding, rank)
        self.padding_mode = padding_mode
        ends = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (ends[0], ends[1] // groups, *self.kernel_size)
        self.weight = Parameter(empty(*shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", Parameter(empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in != 0:
                init.uniform_(self.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def extra_repr(self) -> str:
        zero, one = (0,) * self.rank, (1,) * self.rank
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != zero:
            text += f", padding={self.padding}"
        if self.dilation != one:
            text += f", dilation={self.dilation}"
        if self.output_padding != zero:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


class _Forward(_Convolution):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._set(
            in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        function = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._sides(), mode=self.padding_mode)
            padding = 0
        return function(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _sides(self) -> list[int]:
        """Padding as `F.pad` takes it: the last axis first."""
        sides: list[int] = []
        for axis in reversed(range(self.rank)):
            if self.padding == "valid":
                sides += [0, 0]
            elif self.padding == "same":
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [self.padding[axis]] * 2
        return sides


class _Transposed(_Convolution):
    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, bias: bool = True, dilation: Any = 1, padding_mode: str = "zeros",
        device: Any = None, dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if padding_mode != "zeros":
            raise ValueError(f'Only "zeros" padding mode is supported for {type(self).__name__}')
        self._set(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.rank - 1]
        extra = self.output_padding if output_size is None else self._extra(input, output_size)
        return function(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    def _extra(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """The output padding that gives `output_size`. ValueError if none does."""
        wanted = tuple(output_size)[-self.rank :]
        found = []
        for size, want, s, p, d, k in zip(
            input.shape[-self.rank :], wanted, self.stride, self.padding, self.dilation, self.kernel_size
        ):
            least = (size - 1) * s - 2 * p + d * (k - 1) + 1
            if not least <= want < least + s:
                raise ValueError(
                    f"requested an output size of {list(wanted)}, but valid sizes range from {least} to {least + s - 1}"
                )
            found.append(want - least)
        return tuple(found)


class Conv1d(_Forward):
    """Convolution over (N, C, L) or (C, L)."""

    rank = 1


class Conv2d(_Forward):
    """Convolution over (N, C, H, W) or (C, H, W)."""

    rank = 2


class Conv3d(_Forward):
    """Convolution over (N, C, D, H, W) or (C, D, H, W)."""

    rank = 3


class ConvTranspose1d(_Transposed):
    """Transposed convolution over (N, C, L) or (C, L)."""

    rank = 1


class ConvTranspose2d(_Transposed):
    """Transposed convolution over (N, C, H, W) or (C, H, W)."""

    rank = 2


class ConvTranspose3d(_Transposed):
    """Transposed convolution over (N, C, D, H, W) or (C, D, H, W)."""

    rank = 3


__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
