"""The graph passes that the command line offers, in the order in which compilation runs them."""

from __future__ import annotations

from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.passes.block_convolutions import BlockConvolutions
from flambeau.compiler.passes.decompose import Decompose
from flambeau.compiler.passes.expand_depthwise import ExpandDepthwise
from flambeau.compiler.passes.rematerialise import Rematerialise
from flambeau.compiler.passes.simplify import Simplify
from flambeau.compiler.passes.simplify_scans import SimplifyScans
from flambeau.compiler.passes.split_groups import SplitGroups
from flambeau.compiler.passes.split_reductions import SplitReductions
from flambeau.compiler.passes.split_windows import SplitWindows
from flambeau.compiler.passes.undilate import Undilate
from flambeau.compiler.passes.winograd import Winograd

PASSES: tuple[type[Pass], ...] = (
    Decompose,
    SimplifyScans,
    SplitGroups,
    Undilate,
    SplitReductions,
    SplitWindows,
    Winograd,
    ExpandDepthwise,
    BlockConvolutions,
    Rematerialise,
    Simplify,
)
