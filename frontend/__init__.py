"""Flambeau: PyTorch's programming model on an ahead-of-time compiler. This module is the whole public API."""

from math import e, inf, nan, pi

from flambeau import autograd, in_place, linalg, nn, optim, profiler, random, utils
from flambeau.arithmetic import (
    add,
    atan2,
    div,
    floor_divide,
    fmod,
    maximum,
    minimum,
    mul,
    pow,
    reciprocal,
    remainder,
    sub,
)
from flambeau.autograd import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from flambeau.conversion import result_type
from flambeau.creation import (
    arange,
    as_tensor,
    clone,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    ones,
    ones_like,
    tensor,
    tril,
    triu,
    zeros,
    zeros_like,
)
from flambeau.devices import cuda, device
from flambeau.dtypes import (
    bfloat16,
    double,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    long,
    promote_types,
    set_default_dtype,
    short,
    uint8,
)
from flambeau.dtypes import bool_ as bool
from flambeau.dtypes import float_ as float
from flambeau.dtypes import int_ as int
from flambeau.evaluation import sync
from flambeau.export import Exported, export
from flambeau.gathering import (
    bincount,
    gather,
    index_add,
    index_copy,
    index_fill,
    index_put,
    index_select,
    scatter,
    scatter_add,
    scatter_add_,
    take,
    take_along_dim,
    unique,
)
from flambeau.indexing import argwhere, masked_fill, masked_select, nonzero
from flambeau.jit import compile
from flambeau.joining import (
    cat,
    concat,
    concatenate,
    flip,
    fliplr,
    flipud,
    hstack,
    meshgrid,
    repeat_interleave,
    roll,
    stack,
    tile,
    vstack,
)
from flambeau.linalg import (
    _int_mm,
    addmm,
    baddbmm,
    bmm,
    dot,
    einsum,
    matmul,
    mm,
    mv,
    outer,
    tensordot,
    trace,
)
from flambeau.looping import scan
from flambeau.operands import broadcast_shapes as _broadcast_shapes
from flambeau.parallel import get_num_threads, set_num_threads
from flambeau.planning import stats
from flambeau.pointwise import (
    abs,
    acos,
    acosh,
    addcdiv,
    addcmul,
    asin,
    asinh,
    atan,
    atanh,
    bitwise_and,
    bitwise_left_shift,
    bitwise_not,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clamp,
    clamp_max,
    clamp_min,
    cos,
    cosh,
    digamma,
    eq,
    erf,
    erfc,
    erfinv,
    exp,
    exp2,
    expm1,
    floor,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    lerp,
    lgamma,
    log,
    log1p,
    log2,
    log10,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    nan_to_num,
    ne,
    neg,
    positive,
    relu,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    tanh,
    trunc,
    where,
)
from flambeau.printing import set_printoptions
from flambeau.random import (
    Generator,
    bernoulli,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from flambeau.reduction import (
    all,
    allclose,
    amax,
    amin,
    aminmax,
    any,
    argmax,
    argmin,
    argsort,
    count_nonzero,
    cumprod,
    cumsum,
    equal,
    isclose,
    log_softmax,
    logsumexp,
    max,
    mean,
    median,
    min,
    norm,
    prod,
    softmax,
    sort,
    std,
    sum,
    topk,
    var,
    var_mean,
)
from flambeau.serialization import load, save
from flambeau.shaping import (
    broadcast_tensors,
    broadcast_to,
    chunk,
    diag,
    diag_embed,
    diagonal,
    flatten,
    movedim,
    narrow,
    permute,
    ravel,
    reshape,
    select,
    split,
    squeeze,
    t,
    tensor_split,
    transpose,
    unbind,
    unflatten,
    unsqueeze,
)
from flambeau.tensor import Size, Tensor

__version__ = "0.1.0"


def broadcast_shapes(*shapes: tuple[int, ...]) -> Size:  # type: ignore[valid-type]
    """The shape to which all broadcast."""
    return Size(_broadcast_shapes(*shapes))


def is_tensor(obj: object) -> bool:  # type: ignore[valid-type]
    """Is it a tensor?"""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:  # type: ignore[valid-type]
    """Has it a floating dtype?"""
    return input.is_floating_point()


def numel(input: Tensor) -> int:  # type: ignore[valid-type]
    """How many elements."""
    return input.numel()
