"""Convolutions by Winograd's minimal filtering, F(2x2, 3x3): 16 products for four results instead of 36.

A tile of 4 x 4 inputs d and a kernel g give 2 x 2 results ``AT [(G g GT) * (BT d B)] A``, with

    BT = 1  0 -1  0      G = 1    0    0      AT = 1  1  1  0
         0  1  1  0          1/2  1/2  1/2         0  1 -1 -1
         0 -1  1  0          1/2 -1/2  1/2
         0  1  0 -1          0    0    1

after A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. The products at each of the 16
positions, summed over channels, are 16 matrix products. The pass `winograd` makes these operations of `graph.convolution`,
after derivatives have been taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import TensorType, f32, f64, tensor

#: Edge of a tile of the input, and of the part of the result that it gives.
TILE, STEP = 4, 2
#: Positions of a tile.
POSITIONS = TILE * TILE

BT = ((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0))
G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
AT = ((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))

_LATE = NotDifferentiable("it is made of graph.convolution after derivatives have been taken")


class WinogradKernel(GraphOp):
    """A convolution's kernel, 3 x 3, as `graph.winograd_convolution` reads it: ``G g GT`` of each pair of channels.

    The result is (O / columns, rounded up; 16; C; columns) for O output features and C input features: blocks of
    `columns` output features, filled up with zeros. `reversal` turns the kernel around along its two spatial dimensions.
    """

    name = "graph.winograd_kernel"
    schedule_family: ClassVar[str] = "winograd_kernel"
    layout: ClassVar[bool] = True
    vjp = _LATE
    columns: int
    output_feature: int = 0
    input_feature: int = 1
    spatial: tuple[int, int] = (2, 3)
    reversal: tuple[bool, bool] = (False, False)

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (w,) = operands
        if sorted((self.output_feature, self.input_feature, *self.spatial)) != [0, 1, 2, 3] or w.rank != 4:
            raise self.reject("the dimension numbers must be a permutation of the kernel's four", actual=w)
        if any(w.shape[a] != 3 for a in self.spatial):
            raise self.reject("the kernel must be 3 x 3", actual=w)
        if w.element not in (f32, f64):
            raise self.reject("the kernel must be f32 or f64", actual=w.element)
        if self.columns < 1 or self.columns % 4:
            raise self.reject("columns must be a multiple of 4", actual=self.columns)
        features = w.shape[self.output_feature]
        blocks = (features + self.columns - 1) // self.columns
        return tensor((blocks, POSITIONS, w.shape[self.input_feature], self.columns), w.element)

    def index(self, o: Index, c: Index, y: int, x: int) -> tuple[Index, ...]:
        """Where the kernel's element for these features and this tap is."""
        at: list[Index] = [0] * 4
        at[self.output_feature], at[self.input_feature] = o, c
        for axis, place, turned in zip(self.spatial, (y, x), self.reversal, strict=True):
            at[axis] = 2 - place if turned else place
        return tuple(at)

    def reference(self, w: np.ndarray[Any, Any]) -> Any:
        g = w.transpose(self.output_feature, self.input_feature, *self.spatial).astype(np.float64)
        g = np.flip(g, tuple([s + 2 for s in range(2) if self.reversal[s]]))
        taps = np.einsum("ij,ocjk,lk->iloc", np.array(G), g, np.array(G)).reshape(POSITIONS, *g.shape[:2])
        blocks = -(-g.shape[0] // self.columns)
        out = np.zeros((POSITIONS, blocks * self.columns, g.shape[1]))
        out[:, : g.shape[0]] = taps
        out = out.reshape(POSITIONS, blocks, self.columns, g.shape[1])
        return np.ascontiguousarray(out.transpose(1, 0, 3, 2)).astype(w.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        yield Sample(WinogradKernel(4), (rng.standard_normal((6, 5, 3, 3)),))
        yield Sample(
            WinogradKernel(32, 1, 0, (3, 2), (True, False)),
            (rng.standard_normal((20, 40, 3, 3)),),
            note="features exchanged, turned around",
        )


class WinogradConvolution(GraphOp):
    """The convolution of an input (batch, feature, height, width) by a kernel of `graph.winograd_kernel`.

    Strides are 1; `padding` is (low, high) of height and width, not negative; `features` are those of the result. An
    infinity gives NaN where its tile's other elements cancel it; a NaN reaches just the results whose windows have it.
    """

    name = "graph.winograd_convolution"
    schedule_family: ClassVar[str] = "contraction"
    vjp = _LATE
    features: int
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    def products(self, x: TensorType, u: TensorType) -> Index:
        """How many products an element of the result is the sum of, in a direct convolution."""
        return 9 * x.shape[1]

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        x, u = operands
        if x.rank != 4 or u.rank != 4:
            raise self.reject("input and kernel must have four dimensions", actual=f"{x} and {u}")
        if x.element is not u.element or x.element not in (f32, f64):
            raise self.reject(
                "input and kernel must both be f32 or f64", expected=x.element, actual=u.element
            )
        blocks, columns = u.shape[0], u.shape[3]
        if not isinstance(blocks, int) or not isinstance(columns, int):
            raise self.reject("the kernel's sizes must be numbers", actual=u)
        fits = blocks * columns >= self.features and columns % 4 == 0
        if u.shape[1] != POSITIONS or u.shape[2] != x.shape[1] or not fits:
            raise self.reject(
                "the kernel must be (features / columns, 16, the input's features, columns)", actual=u
            )
        if any(side < 0 for sides in self.padding for side in sides):
            raise self.reject("padding must not be negative", actual=self.padding)
        shape: list[Index] = [x.shape[0], self.features]
        for extent, (low, high) in zip(x.shape[2:], self.padding, strict=True):
            count = extent + low + high - 2
            if not isinstance(count, int):
                raise self.reject("height and width must be numbers", actual=x)
            if count < 1:
                raise self.reject("the window must fit into the padded input", expected=3, actual=count + 2)
            shape.append(count)
        return tensor(shape, x.element)

    def reference(self, x: np.ndarray[Any, Any], u: np.ndarray[Any, Any]) -> Any:
        wide = (
            u.transpose(1, 0, 3, 2).reshape(POSITIONS, -1, u.shape[2])[:, : self.features].astype(np.float64)
        )
        (top, bottom), (left, right) = self.padding
        height, width = x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2
        down, across = -(-height // STEP), -(-width // STEP)
        image = np.zeros((*x.shape[:2], STEP * down + 2, STEP * across + 2))
        image[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
        seen = np.lib.stride_tricks.sliding_window_view(image, (TILE, TILE), (2, 3))[:, :, ::STEP, ::STEP]
        tiles = np.einsum("ij,nchwjk,lk->ilnchw", np.array(BT), seen, np.array(BT))
        tiles = tiles.reshape(POSITIONS, *tiles.shape[2:])
        products = np.einsum("poc,pnchw->pnohw", wide, tiles).reshape(
            TILE, TILE, x.shape[0], self.features, down, across
        )
        out = np.einsum("ai,bl,ilnohw->nohawb", np.array(AT), np.array(AT), products)
        out = out.reshape(x.shape[0], self.features, STEP * down, STEP * across)
        return np.ascontiguousarray(out[:, :, :height, :width]).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for shape, features, padding, note in (
            ((1, 3, 6, 8), 4, ((1, 1), (1, 1)), "padded"),
            ((2, 5, 7, 5), 6, ((0, 2), (1, 0)), "odd sizes, uneven padding"),
        ):
            kernel = rng.standard_normal((features, shape[1], 3, 3))
            u = WinogradKernel(16).reference(kernel)
            sides = (*padding[1], *padding[0])
            yield Sample(
                WinogradConvolution(features, padding),
                (rng.standard_normal(shape), u),
                lambda x, _, w=kernel, s=sides: F.conv2d(F.pad(x, s), _like(x, w)),
                note=note,
            )


def _like(x: Any, w: np.ndarray[Any, Any]) -> Any:
    """The array as a tensor of the other's module and type."""
    return x.new_tensor(w)
