"""The tensor: a view of a storage cell, and what autograd and Python's protocols ask of it.

Operators and methods over operations are set on the class by the modules that define the functions (`method`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from flambeau import devices, dtypes, evaluation, printing
from flambeau.compiler import options
from flambeau.compiler.dialects.graph.autograd_ops import Copy
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import Type
from flambeau.evaluation import LIMIT, record, state
from flambeau.handles import RemovableHandle
from flambeau.reverse import Meta, is_leaf, meta_of
from flambeau.storage import (
    Cell,
    Chain,
    apply_chain,
    contiguous_strides,
    here,
    replacements,
    strides_of,
    write_now,
    write_through,
)
from flambeau.tape import Recorder

F = TypeVar("F", bound=Callable[..., Any])


class Size(tuple[int, ...]):
    """A shape: a tuple that counts its elements and prints as PyTorch's."""

    def numel(self) -> int:
        return int(np.prod(self, dtype=np.int64))

    def __repr__(self) -> str:
        return f"torch.Size({list(self)})"

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return Size(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Size:
        return Size(tuple(self) + tuple(other))


class Tensor:
    """A multi-dimensional array that records what is done to it."""

    __slots__ = ("_cell", "_chain", "_base", "_cached", "_grad", "_root", "__dict__", "__weakref__")
    __array_priority__ = 1000
    _cell: Cell

    def __init__(self, data: Any = None) -> None:
        """A floating tensor from nested lists, or of the shape given by integers (as `torch.Tensor`)."""
        array = np.asarray([] if data is None else data, dtypes.get_default_dtype().numpy)
        _fill(
            self, Cell(evaluation.leaf(np.array(array, order="C"), dtypes.get_default_dtype().element)), None
        )

    # -- what it is ------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> Size:
        return Size(read(self).type.shape)  # type: ignore[attr-defined]

    @property
    def dtype(self) -> dtypes.dtype:
        return dtypes.of_element[self._cell.value.type.element]  # type: ignore[attr-defined]

    @property
    def device(self) -> devices.device:
        return devices.cpu

    @property
    def ndim(self) -> int:
        return len(read(self).type.shape)  # type: ignore[attr-defined]

    @property
    def is_cuda(self) -> bool:
        return False

    @property
    def is_sparse(self) -> bool:
        return False

    @property
    def layout(self) -> str:
        return "torch.strided"

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.numel() * self.itemsize

    @property
    def _version(self) -> int:
        return here(self._cell).version

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    def size(self, dim: int | None = None) -> Any:
        shape = self.shape
        if dim is None:
            return shape
        return shape[axis(dim, len(shape))]

    def numel(self) -> int:
        return self.shape.numel()

    nelement = numel

    def element_size(self) -> int:
        return self.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Steps in elements, as PyTorch's tensor has them where it is a view of contiguous memory."""
        found = strides_of(self._chain, self._cell.read().type.shape, self.shape)[0]  # type: ignore[attr-defined]
        return tuple(found) if dim is None else found[axis(dim, len(found))]

    def storage_offset(self) -> int:
        return strides_of(self._chain, self._cell.read().type.shape, self.shape)[1]  # type: ignore[attr-defined]

    def is_contiguous(self, memory_format: Any = None) -> bool:
        shape = self.shape
        return 0 in shape or all(
            n == 1 or a == b for n, a, b in zip(shape, self.stride(), contiguous_strides(shape))
        )

    def data_ptr(self) -> int:
        """The address of the content."""
        return int(evaluation.content(read(self)).ctypes.data)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        return False

    def is_signed(self) -> bool:
        return self.dtype.is_signed

    def get_device(self) -> int:
        return -1

    # -- autograd --------------------------------------------------------------------------------------------------
    @property
    def requires_grad(self) -> bool:
        return read(self).requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.requires_grad_(wanted)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Make it a leaf of autograd's graph, or no part of it. RuntimeError for integers and non-leaf tensors."""
        value = read(self)
        if requires_grad == value.requires_grad:
            return self
        if requires_grad and value.type.element.kind != "float":  # type: ignore[attr-defined]
            raise RuntimeError("only Tensors of floating point dtype can require gradients")
        if not requires_grad:
            if not is_leaf(value):
                raise RuntimeError(
                    "you can only change requires_grad flags of leaf variables. If you want to use a computed variable "
                    "in a subgraph that doesn't require differentiation use var_no_grad = var.detach()."
                )
            cell = here(self._cell)
            cell.value = evaluation.stop_gradient(value)
            cell.leaf = None
            self._base = None
            if cell.value.data is None:
                evaluation.note(cell)
            return self
        if self._chain is not None:  # a view of something without history: its own leaf over the same memory
            part = Cell(value, self._cell)
            part.through = self._chain
            self._cell, self._chain, self._base = part, None, None
        self._cell.become_leaf(self._leaf_meta())
        return self

    def _leaf_meta(self) -> Meta:
        meta = Meta(None, leaf=True)
        meta.tensor = weakref.ref(self)
        return meta

    @property
    def is_leaf(self) -> bool:
        value = read(self)
        return not value.requires_grad or is_leaf(value)

    @property
    def grad(self) -> Tensor | None:
        return self._grad if state.trace is None else state.trace.grad(self)  # type: ignore[no-any-return]

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and tuple(value.shape) != tuple(self.shape):
            raise RuntimeError(
                f"assigned grad has data of a different size: expected {list(self.shape)}, got {list(value.shape)}"
            )
        if state.trace is None:
            self._grad = value
        else:
            state.trace.set_grad(self, value)

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    @property
    def grad_fn(self) -> Any:
        value = read(self)
        if not value.requires_grad or is_leaf(value):
            return None
        return GradFunction(value)

    @property
    def retains_grad(self) -> bool:
        meta = read(self).hooks
        return isinstance(meta, Meta) and any(r() is self for r in meta.retain)

    def retain_grad(self) -> None:
        """Keep the gradient of a tensor that is not a leaf in `.grad` as well."""
        value = read(self)
        if not value.requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if not is_leaf(value):
            meta_of(value).retain.append(weakref.ref(self))

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook(grad)` when the gradient with respect to this tensor is known; it may return another one."""
        value = read(self)
        if not value.requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        return RemovableHandle(meta_of(value).hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `hook(self)` after a gradient was added to `.grad` of a leaf."""
        value = read(self)
        if not value.requires_grad or not is_leaf(value):
            raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
        meta = meta_of(value)
        if meta.function is None:
            meta.function = {}
        return RemovableHandle(meta.function, hook)

    def detach(self) -> Tensor:
        """The same memory, no history."""
        if not read(self).requires_grad:
            return view_of(self)
        return new_tensor(Cell(self._cell.read(), self._cell), self._chain)

    def detach_(self) -> Tensor:
        value = read(self)
        if value.requires_grad:
            cell = here(self._cell)
            cell.value = evaluation.stop_gradient(value)
            if cell.value.data is None:
                evaluation.note(cell)
        return self

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        new = evaluation.stop_gradient(read(other))
        value = here(self._cell).value
        if value.requires_grad and is_leaf(value):
            new = evaluation.stop_gradient(new)
            evaluation.begin_history(new, value.hooks)
        replacements.note(self._cell)
        self._cell = Cell(new)
        self._chain = self._base = None

    # -- what it holds -----------------------------------------------------------------------------------------------
    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        """The content as an array that shares memory where it can. RuntimeError if it requires grad."""
        value = read(self)
        if value.requires_grad and not force:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
            )
        return evaluation.content(value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def item(self) -> Any:
        """The only element as a Python number. RuntimeError if there are several."""
        array = evaluation.content(read(self))
        if array.size != 1:
            raise RuntimeError(f"a Tensor with {array.size} elements cannot be converted to Scalar")
        return _python(array.reshape(()))

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return _python(snapshot(self))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            what = "no values" if self.numel() == 0 else "more than one value"
            raise RuntimeError(f"Boolean value of Tensor with {what} is ambiguous")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_floating_point or self.numel() != 1:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self.item())

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def __contains__(self, element: Any) -> bool:
        return bool((self == element).any().item())  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return printing.text(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
            )
        kept = self.requires_grad
        content = np.array(snapshot(self))
        copy = type(self).__new__(type(self))
        _fill(copy, Cell(evaluation.leaf(content, self.dtype.element)), None)
        copy.__dict__.update(self.__dict__)
        if kept:
            copy.requires_grad_()
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (
            type(self),
            np.array(snapshot(self)),
            self.dtype,
            self.requires_grad,
        )


def _rebuild(kind: type[Tensor], array: Any, dtype: dtypes.dtype, requires_grad: bool) -> Tensor:
    made = kind.__new__(kind)
    _fill(made, Cell(evaluation.leaf(array, dtype.element)), None)
    return made.requires_grad_() if requires_grad else made


class GradFunction:
    """What made a tensor, as far as autograd tells."""

    def __init__(self, value: Value) -> None:
        meta = value.hooks
        name = meta.name if isinstance(meta, Meta) else meta
        if name is None:
            assert value.owner is not None
            name = value.owner.definition.name.rpartition(".")[2].title().replace("_", "")
        self._name = name if "Backward" in name else f"{name}Backward0"
        self._value = value

    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<{self._name} object>"

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        owner = self._value.owner
        flowing = [] if owner is None else [v for v in owner.operands if v.requires_grad]
        return tuple((None if is_leaf(v) else GradFunction(v), 0) for v in flowing)


def _fill(tensor: Tensor, cell: Cell, chain: Chain | None) -> None:
    tensor._cell, tensor._chain = cell, chain
    tensor._base = tensor._cached = tensor._grad = None


def _python(array: np.ndarray[Any, Any]) -> Any:
    return (array.astype(np.float64) if array.dtype.kind == "V" else array).tolist()


# -- for the modules that define operations ----------------------------------------------------------------------------


def new_tensor(cell: Cell, chain: Chain | None = None) -> Tensor:
    tensor = Tensor.__new__(Tensor)
    tensor._cell, tensor._chain = cell, chain
    tensor._base = tensor._cached = tensor._grad = None
    return tensor


def fresh(now: Recorder, value: Value) -> Tensor:
    """A tensor of a value that was recorded just now: what `wrap` does, in one frame."""
    cell: Cell = _new(Cell)
    cell.value, cell.version = value, 0
    cell.parent = cell.seen = cell.leaf = cell.through = None
    tensor: Tensor = _new(Tensor)
    tensor._cell = cell
    tensor._chain = tensor._base = tensor._cached = tensor._grad = None
    now.pending.append(weakref.ref(cell))
    if now.recorded > LIMIT:
        evaluation.sync()
    elif options._current.eager:
        evaluation.evaluate((value,))
    return tensor


_new = object.__new__


def known_tensor(kind: Type, array: np.ndarray[Any, Any]) -> Tensor:
    """A new tensor of known content, outside traces."""
    value: Value = _new(Value)
    value.type, value.owner, value.index, value.number = kind, None, 0, -1
    value.data, value.requires_grad, value.hooks = array, False, None
    cell: Cell = _new(Cell)
    cell.value, cell.version = value, 0
    cell.parent = cell.seen = cell.leaf = cell.through = None
    tensor: Tensor = _new(Tensor)
    tensor._cell = cell
    tensor._chain = tensor._base = tensor._cached = tensor._grad = None
    return tensor


def made(definition: Any, name: str, *tensors: Tensor) -> Tensor:
    """One operation of the given tensors, with one result; `name` is what `grad_fn` prints."""
    now = state.now
    values = tuple([read(t) for t in tensors])
    if now.trace is not None:
        return wrap(record(definition, *values), name)
    flows = False
    if now.grad:
        for v in values:
            if v.requires_grad:
                flows = True
                break
    value = now.apply(definition, values, flows)
    if flows:
        if value.type.element.kind == "float":  # type: ignore[attr-defined]
            value.hooks = name
        else:
            value.requires_grad = False
    return fresh(now, value)


def wrap(value: Value, name: str | None = None) -> Tensor:
    """A new tensor with this value; `name` is what `grad_fn` prints (``Add`` for ``<AddBackward0>``)."""
    if value.requires_grad:
        if not state.grad:
            value = evaluation.stop_gradient(value)
        elif value.hooks is None:
            value.hooks = name
        elif is_leaf(value):
            value = record(Copy(), value)
            value.hooks = name
    if options._current.eager and value.data is None and state.trace is None:
        evaluation.evaluate((value,))
    return new_tensor(Cell(value))


def read(tensor: Tensor) -> Value:
    """The tensor's value now."""
    cell, trace = tensor._cell, state.now.trace
    value = cell.value if cell.parent is None and trace is None else cell.read()
    chain = tensor._chain
    if chain is None:
        return value
    if trace is not None:
        return trace.view(tensor, value)  # type: ignore[no-any-return]
    if tensor._base is not value:
        tensor._cached = apply_chain(chain, value)
        tensor._base = value
    return tensor._cached


def snapshot(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The content for reading at once: of a released weight (`weights`) a copy that is not kept."""
    cell = tensor._cell
    while cell.parent is not None and cell.through is None:
        cell = cell.parent
    if cell.parent is None and tensor._chain is None and evaluation.is_released(cell.value):
        return evaluation.unpacked(cell.value)
    return evaluation.content(read(tensor))


def write(tensor: Tensor, new: Value, uniform: bool = False) -> Tensor:
    """Put `new`, of the tensor's own type, into its memory. RuntimeError where autograd forbids it.

    `uniform` says that all its elements are equal, so that an expanded tensor may be written too.
    """
    cell = tensor._cell
    if tensor._chain:
        tensor._base = tensor._cached = None  # no longer so, and a reference to what is written
        if write_now(cell, tensor._chain, new):
            return tensor
    base = cell.read()
    recorded = state.grad
    if recorded and base.requires_grad and is_leaf(base):
        kind = "a view of a leaf Variable" if tensor._chain is not None else "a leaf Variable"
        raise RuntimeError(f"{kind} that requires grad is being used in an in-place operation.")
    if tensor._chain is not None:
        if 0 in tensor.shape:  # a view of nothing: of an expanded tensor, too
            return tensor
        new = write_through(tensor._chain, base, new, uniform)
    cell.write(new, recorded)
    tensor._base = None
    if options._current.eager and state.trace is None:
        evaluation.evaluate(())
    return tensor


def view(tensor: Tensor, *definitions: Any, name: str | None = None) -> Tensor:
    """A tensor on the same memory, seen through further definitions."""
    cell = tensor._cell
    if not state.grad and read(tensor).requires_grad:
        cell = Cell(cell.read(), cell)
    chain = (*(tensor._chain or ()), *definitions)
    made = new_tensor(cell, chain or None)
    value = read(made)
    if name is not None and value.requires_grad and value.hooks is None:
        value.hooks = name
    return made


def view_of(tensor: Tensor) -> Tensor:
    """Another tensor object on the same memory: a view of all of it (its own leaf, if it is asked to require grad)."""
    return new_tensor(tensor._cell, tensor._chain or ())


def axis(dim: int, rank: int) -> int:
    """`dim` counted from the front. IndexError as PyTorch's if it is out of range (a 0-d tensor has dimension 0)."""
    span = max(rank, 1)
    if not -span <= dim < span:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-span}, {span - 1}], but got {dim})"
        )
    return dim % span


def axes(dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """`dims` sorted and counted from the front; all for None or none given."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(rank))
    listed = (dims,) if isinstance(dims, int) else dims
    if rank == 0:
        for d in listed:
            axis(d, 0)
        return ()
    found = [axis(d, rank) for d in listed]
    if len(set(found)) != len(found):
        raise RuntimeError(f"dim {found[0]} appears multiple times in the list of dims")
    return tuple(sorted(found))


def method(*names: str) -> Callable[[F], F]:
    """Makes a function of a tensor a method too, under these names."""

    def attach(function: F) -> F:
        for name in names:
            setattr(Tensor, name, function)
        return function

    return attach
