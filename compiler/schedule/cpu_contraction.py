"""How a contraction runs on a CPU: which scheme, which register tile, which cache blocks.

Measured on AVX-512 (Zen 4) against a loop of nothing but fused multiply-adds: 96-98 % from 256 to
2048, with B transposed 98 % (panel). The register tile keeps accumulators, one row of B and one broadcast
in registers; loop order "rows outside" keeps the A panel in L1 while B streams from L2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.targets.machine import TargetDescription

Scheme = Literal["direct", "panel", "dot", "packed", "few"]
UNROLL = 4
#: Bytes within which the hardware foresees what is read next.
PAGE = 4096
#: Of a cache line.
LINE = 64
#: Columns of B that are packed at a time, in tasks: together two of these fill a core's L2, so what is packed is still in
#: L2 or L3 when it is read. More would go to memory and come back where N is large (a vocabulary).
PACKED_TASKS = 4
#: Tasks that the scheme *packed* has at a time, if there are tiles enough: threads finish together.
TASKS = 64
#: Rows of A up to which fetching B from memory is a large part of the time, and the bytes of B that are fetched on end.
FEW = 64
FETCHED_RUN = 4096
#: The most rows of the scheme *few*, and the same where B is transposed.
FEW_ROWS = 128
FEW_TRANSPOSED = 384
#: Its most vectors of rows, whose code is written out one after the other.
FEW_GROUPS = 48
#: Its least depth, in parts of L1.
FEW_DEPTH = 64
#: Tasks that it is cut into unless columns are many, and bytes of a row of B for one.
FEW_TASKS, FEW_RUN = 8, 2112
#: The most bytes of a panel of B on a task's stack.
PANEL_BYTES = 128 << 10
#: Without packing of a B beyond L2: the most of K that is not cut (two thirds of it if A is transposed), the blocks that more
#: is cut into, the most of K, and a task's tiles from top to bottom.
SPREAD_DEPTH, SPREAD_BLOCK, SPREAD_DEEPEST, SPREAD_DOWN = 1152, 512, 2048, 16
#: Rows of A up to which sums are kept beside B's columns while B passes by, and bytes of B's rows that are read on end then.
STREAMED_ROWS, STREAMED = 12, 16 << 10
#: How much deeper blocks of words are: unfinished sums weigh more beside products that take less time, and A may as well
#: come from L2.
WORDS_DEEPER = 3
#: Rows of A up to which words are multiplied as they lie, if they lie along K on both sides.
WORDS_DOT = 16
#: CPUs, by LLVM's names, that compute vectors of 512 bits in two steps of 256.
HALVING = ("znver4",)
#: Parts that rows are cut into beside a B in panels, if these have so many tiles.
PANEL_PARTS, PANEL_TILES = 4, 8
#: Multiply-adds that a task should have at least.
TASK_WORK = 1 << 18


@dataclass(frozen=True)
class CpuShape:
    """The numbers of a CPU that a contraction's schedule depends on. `halved`: it computes its widest vectors in two steps,
    so that twice as many of half the width take no longer. `by_lane`: it multiplies by a lane of a vector, so that scalars come
    from memory several at a time."""

    vector_bits: int = 512
    registers: int = 32
    l1: int = 32 << 10
    l2: int = 1 << 20
    halved: bool = False
    by_lane: bool = False


@dataclass(frozen=True)
class ContractionSchedule:
    """`rows` x `vectors * lanes` is the register tile; `block_k` the depth of a packed panel; a task of the parallel
    loop covers `task_rows` x `task_columns` of the result; in the scheme *packed*, B is packed `across` columns at a
    time. With `ahead` the next block of it is fetched from memory meanwhile; in the schemes *direct* and *panel*, the next
    batch element, or B's next panel. In the schemes *direct* and *dot*, the rows of B's memory that come `foresee` rows later
    are asked for. `by_lane`: elements of A that are neighbours are loaded together."""

    scheme: Scheme
    lanes: int
    rows: int
    vectors: int
    block_k: int
    task_rows: int
    task_columns: int
    unroll: int = UNROLL
    across: int = 0
    ahead: bool = False
    foresee: int = 0
    by_lane: bool = False

    @property
    def columns(self) -> int:
        """Columns of the register tile."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class OperandFacts:
    """`plain`: elements lie in a buffer of the accumulator's type; `unit_row`, `unit_depth`: stride 1 along
    M (of A) or N (of B), along K. `panel`: it lies in panels of this width; 0 if not. `in_words`: where k counts words, they
    may be read one by one as they lie."""

    plain: bool
    unit_row: bool
    unit_depth: bool
    panel: int = 0
    in_words: bool = False


def _assume(extent: Index, default: int = 256) -> int:
    """A number for cost decisions; an unknown extent counts as `default`."""
    return default if isinstance(extent, Dim) else max(extent, 1)


def balanced(extent: int, most: int) -> int:
    """The tile not above `most` that splits `extent` into equal parts: 32 by 12 gives 11, not 12 + 12 + 8."""
    parts = max(1, -(-extent // most))
    return max(1, -(-extent // parts))


def dividing(extent: Index, most: int) -> int:
    """Rows of a register tile: a divisor of `extent` if there is one of eight rows or more (128 by 8 rather than 12), else
    equal parts."""
    if not isinstance(extent, int):
        return most
    return next((rows for rows in range(most, 7, -1) if extent % rows == 0), balanced(extent, most))


def register_tile(cpu: CpuShape, lanes: int) -> tuple[int, int]:
    """(rows, vectors): 8 x 2 of 32 registers, 6 x 2 of 16. (12 x 2 fit too, but then the totals of chains do not fit beside
    the sums: 92 % of the peak instead of 95 at 1024.)"""
    vectors = 2
    rows = (cpu.registers - vectors - 2) // vectors
    return min(8, rows - rows % 2), vectors


def _streaming(m: int, size: int, rows: int, wide: int, lanes: int, far: bool) -> ContractionSchedule:
    """Few rows and a large B: short blocks of K over some pages of each row of B, left to right. The sums stay in L1 or L2.
    From memory (`far`) the same of the next block is fetched to L2 meanwhile: the hardware alone goes on from page to
    page, but not from row to row."""
    depth = 8 if m <= 8 else 16
    across = max(1, min(STREAMED, (128 << 10) // m) // size // wide)
    tile = balanced(m, rows)
    unroll = depth if m <= 8 else UNROLL
    foresee = depth if far else 0
    return ContractionSchedule(
        "direct", lanes, tile, wide // lanes, depth, m, wide * across, unroll, foresee=foresee
    )


def choose(
    m: Index,
    n: Index,
    k: Index,
    accumulator: ElementType,
    a: OperandFacts,
    b: OperandFacts,
    cpu: CpuShape,
    batched: bool = False,
    words: bool = False,
) -> ContractionSchedule:
    """The schedule of a contraction of these extents, one of many if `batched`; with `words`, k counts words
    of short elements."""
    s = _one(m, n, k, accumulator, a, b, cpu, batched, words)
    return replace(s, ahead=True) if batched and not words and _foresees(m, n, k, s, accumulator, cpu) else s


def _foresees(
    m: Index, n: Index, k: Index, s: ContractionSchedule, accumulator: ElementType, cpu: CpuShape
) -> bool:
    """Are the next batch element's operands best fetched while one is multiplied? What lies so close together is in no
    order that the hardware knows. (96 of 128 x 64 x 128: 94 % of the peak from memory instead of 59, 98 instead of 86 from L3.)
    A step of the loop over K fetches eight lines of each at most."""
    if s.scheme not in ("direct", "panel"):
        return False
    if not (isinstance(m, int) and isinstance(n, int) and isinstance(k, int)) or 0 in (m, n, k):
        return False
    bytes_ = max(m, n) * k * accumulator.itemsize
    steps = -(-m // s.rows) * -(-n // s.columns) * (k // s.unroll)
    return 2 * bytes_ <= cpu.l2 // 2 and k > s.unroll and bytes_ // 64 <= 8 * steps


def _one(
    m: Index,
    n: Index,
    k: Index,
    accumulator: ElementType,
    a: OperandFacts,
    b: OperandFacts,
    cpu: CpuShape,
    batched: bool,
    words: bool,
) -> ContractionSchedule:
    """What `choose` says of each batch element alone."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    size = accumulator.itemsize
    rows, vectors = register_tile(cpu, lanes)
    em, en, ek = _assume(m), _assume(n), _assume(k)
    if b.panel and b.panel % lanes == 0:
        return _from_panels(m, n, k, size, lanes, a, b.panel, cpu, words)
    streams, far = en * ek * size > cpu.l2 // 2, en * ek * size > 2 * cpu.l2
    if words and a.unit_depth and b.unit_depth and ek >= lanes and (em <= WORDS_DOT or en <= 4):
        return _streams(em, ek, size, lanes, cpu) if em <= 4 and far else _dot(em, en, ek, lanes, cpu, True)
    if streams and em > STREAMED_ROWS and isinstance(k, int) and _spread(m, n, k, size, a, b, cpu):
        rows, wide = dividing(m, rows), vectors * lanes
        down = balanced(-(-em // rows), SPREAD_DOWN)
        if k <= (SPREAD_DEPTH if a.unit_depth else SPREAD_DEPTH * 2 // 3):
            return ContractionSchedule("direct", lanes, rows, vectors, k, rows * down, wide * 2)
        depth = -(-balanced(k, SPREAD_BLOCK) // UNROLL) * UNROLL
        return ContractionSchedule("direct", lanes, rows, vectors, depth, rows * down, wide * 4)
    few = None
    if b.plain and isinstance(m, int) and isinstance(n, int) and isinstance(k, int) and not batched:
        few = _few(m, n, k, size, lanes, b, streams, cpu)
    if a.plain and b.plain and a.unit_depth and b.unit_depth and ek >= lanes and (en == 1 or not b.unit_row):
        if em <= 4 and far and ek >= 8 * lanes:
            return _streams(em, ek, size, lanes, cpu)
        if few is not None and em <= FEW and em * ek * size <= cpu.l2 * 5 // 8:
            # The sum over lanes at the end takes as long as some vectors more; a vector's rows that do not exist, too.
            if em * (ek + 3 * lanes) < -(-em // few.lanes) * few.lanes * ek:
                return _dot(em, en, ek, lanes, cpu, foresees=streams)
        elif min(em, en) <= 32 and (em <= 4 or en <= 4 or ek >= 4 * lanes):
            return _dot(em, en, ek, lanes, cpu, foresees=streams and en > 4)
    if few is not None:
        return few
    if a.plain and b.plain and b.unit_row and streams and isinstance(m, int) and m <= STREAMED_ROWS:
        return _streaming(m, size, rows, vectors * lanes, lanes, far)
    # Rows that lie an unknown distance apart need a register each for their addresses.
    pitches = not isinstance(n, Dim) and not isinstance(k, Dim)
    if a.plain and b.plain and b.unit_row and not streams and pitches:
        rows = dividing(m, rows)
        down, wide = _tasks(em, en, ek, rows, vectors * lanes)
        if not a.unit_depth:
            # A line of A, which may be gone by the next task, has rows of several tiles.
            more = max(down, rows * -(-LINE // (rows * size))), max(wide, 2 * vectors * lanes)
            if em // more[0] * (en // more[1]) >= TASKS:
                down, wide = more
        return ContractionSchedule("direct", lanes, rows, vectors, 512, down, wide)
    if b.plain and b.unit_row and streams and isinstance(m, int) and m <= FEW and isinstance(n, int):
        return _fetching(m, n, k, size, lanes, cpu)
    if a.plain and b.plain and a.unit_depth and isinstance(k, int) and em > FEW_ROWS:
        # One vector's sums fill AVX-512's pipes; narrower ones come in more pipes or with fewer registers.
        wide = lanes * (1 if b.unit_depth and cpu.vector_bits >= 512 else vectors)
        if k * wide * size <= PANEL_BYTES and (b.unit_depth or b.unit_row):
            return _panels(em, en, k, size, dividing(m, rows), wide, lanes, cpu)
    as_it_lies = a.plain or (words and a.in_words)
    if as_it_lies and isinstance(k, int) and k * vectors * lanes * size <= 2 * cpu.l1 and em <= 512:
        one_by_one = words and not (cpu.by_lane and not accumulator.is_float)
        rows = _fitting_rows(m, vectors, cpu) if one_by_one else dividing(m, rows)
        # Where A's rows lie far apart LLVM loads words of several steps at once, and has no registers for them in NEON.
        unroll = 1 if one_by_one and cpu.vector_bits == 128 else UNROLL
        return ContractionSchedule(
            "panel", lanes, rows, vectors, max(k, 1), -(-em // rows) * rows, vectors * lanes, unroll
        )
    if words:
        rows = _fitting_rows(m, vectors, cpu)
    elif isinstance(m, int):
        rows = balanced(m, rows)
    block_k = max(UNROLL, cpu.l1 * 9 // 16 // (rows * size))  # the A panel: a little more than half of L1
    if words:
        block_k *= WORDS_DEEPER
    if isinstance(k, int):
        block_k = balanced(k, block_k)
        block_k = max(1, min(k, -(-block_k // UNROLL) * UNROLL))
    wide = vectors * lanes
    most = max(1, cpu.l2 // 2 // (block_k * size) // wide)
    across = PACKED_TASKS * most * wide
    task_columns = wide * _even(n if isinstance(n, Dim) else min(n, across), wide, most)
    tiles = -(-em // rows) * -(-min(en, across) // task_columns)
    task_rows = rows * _even(m, rows, max(1, min(8, tiles // TASKS)))
    return ContractionSchedule(
        "packed", lanes, rows, vectors, block_k, task_rows, task_columns, across=across
    )


def _fitting_rows(m: Index, vectors: int, cpu: CpuShape) -> int:
    """Rows of a register tile without totals of chains: of those near the most, with which tiles of all of `m` take the
    least time; a step of K takes that of its rows and, for B, about a seventh of one more."""
    most = max(1, min(13, (cpu.registers - vectors - 1) // vectors))
    if not isinstance(m, int):
        return min(most, 12)
    if m <= most:
        return max(1, m)
    return min(range(most, most // 2, -1), key=lambda rows: -(-m // rows) * (7 * rows + 1))


def _panels(
    m: int, n: int, k: int, size: int, rows: int, wide: int, lanes: int, cpu: CpuShape
) -> ContractionSchedule:
    """A as it lies, beside one panel of B at a time, of all of K: nothing of A is packed, no sum is kept unfinished. (1024 with B
    transposed 98 % of the peak, 94 from packed blocks; 1023 96 (93).) A task's rows of A stay in L3, and are so many that
    packing its panel does not count."""
    tasks = max(1, SPREAD_DOWN // -(-n // wide))
    most = max(SPREAD_DOWN, min(4 * cpu.l2 // (k * size), -(-m // tasks)) // rows)
    return ContractionSchedule(
        "panel", lanes, rows, wide // lanes, k, rows * balanced(-(-m // rows), most), wide
    )


def _spread(m: Index, n: Index, k: int, size: int, a: OperandFacts, b: OperandFacts, cpu: CpuShape) -> bool:
    """Is B, beyond L2 but not far, best read as it lies? If its rows fall into all sets of the caches it is: packing costs
    more than what a tile's rows cost in pages. (Measured: 512 99 % of the peak instead of 97, 600 97 (93), 1000 95 (92), 100
    rows by 1000 x 1000 96 (84), 1024 x 384 x 1536 97 (92); but 1024 and 1023 90, where rows lie a page apart, and 1400 x
    1600 89. With A transposed 1152 x 384 x 1024 96 (92), but 1000 86 (91).)"""
    if not (a.plain and b.plain and b.unit_row and isinstance(n, int)) or k > SPREAD_DEEPEST:
        return False

    def apart(extent: int) -> bool:
        beyond = extent * size % PAGE
        return min(beyond, PAGE - beyond) >= 64

    if a.unit_depth:
        return apart(n) and n * k * size <= 5 * cpu.l2
    return a.unit_row and isinstance(m, int) and apart(m) and apart(n) and n * k * size <= 2 * cpu.l2


def _fetching(m: int, n: int, k: Index, size: int, lanes: int, cpu: CpuShape) -> ContractionSchedule:
    """Few rows and a B that comes from memory: while a block of it, packed, is multiplied, the next one is fetched to L2.
    Rows of a block are pieces of memory long enough for the hardware to foresee their ends."""
    vectors = 3
    rows, wide = _panel_rows(m, vectors, cpu), vectors * lanes
    across = max(1, min(FETCHED_RUN // size, n) // wide)
    depth = max(UNROLL, cpu.l2 // 4 // (across * wide * size) // UNROLL * UNROLL)
    return ContractionSchedule(
        "packed", lanes, rows, vectors, depth, rows * -(-m // rows), wide, across=across * wide, ahead=True
    )


def _few(
    m: int, n: int, k: int, size: int, lanes: int, b: OperandFacts, streams: bool, cpu: CpuShape
) -> ContractionSchedule | None:
    """Rows of A enough for some vectors, and few enough that packing B is a large part of the time; None if not so.

    Measured on Zen 4 against packing B, in parts of the peak: 32 rows by 4096 x 4096 93 % (73), B transposed 96 %;
    128 rows by 768 x 768 95 % (87), B transposed 98 % (89)."""
    most, least = (FEW_TRANSPOSED, 0.6) if b.unit_depth else (FEW_ROWS, 0.7)
    groups, together = -(-m // lanes), 0
    halves = -(-m // max(1, lanes // 2))
    if cpu.halved and halves in (3, 5) and (b.unit_depth or m >= 0.9 * halves * (lanes // 2)):
        # Vectors of half the width fit these rows better, and cost half: all of them side by side.
        lanes, groups, together = lanes // 2, halves, halves
    elif not lanes // 2 < m:
        return None
    if m > most or m < least * groups * lanes or n < lanes or lanes == 1:
        return None
    if groups > FEW_GROUPS:
        return None
    if k * size < cpu.l1 // FEW_DEPTH:
        return None  # so little is summed that transposing what is finished takes longer than packing
    if b.unit_depth and not b.unit_row:
        if m > FEW and not streams:
            return None
        # Of eight columns that lie a power of two apart, the lines just fit one set of L1.
        rows = 5 if together == 5 else min(8, cpu.registers - 4)
        depth = k
        if groups * lanes * k * size > 2 * cpu.l2:
            depth = -(-balanced(k, 2 * cpu.l2 // (groups * lanes * size)) // UNROLL) * UNROLL
        unit = math.lcm(rows, lanes)
        columns = unit * max(1, TASK_WORK // (unit * groups * lanes * k))
        return ContractionSchedule("few", lanes, rows, together or 1, depth, m, columns)
    if not b.unit_row or not streams or m <= STREAMED_ROWS:
        return None
    if k * lanes * size < cpu.l1 // 2:
        return None  # so little is summed that transposing the sums takes as long
    if together:
        vectors, depth = together, 128
    elif n * size % PAGE:
        vectors, depth = 1, 64
    else:  # a column's elements are in few sets of the caches: it is better read seldom
        vectors, depth = min((3, 2, 1), key=lambda v: -(-groups // v) * v), 128
    rows = 5 if together == 5 else _panel_rows(n, vectors, cpu)
    unit = math.lcm(rows, lanes)
    columns = unit * max(1, min(-(-n // (FEW_TASKS * unit)), FEW_RUN // (size * unit)))
    return ContractionSchedule("few", lanes, rows, vectors, min(k, depth), m, columns)


def panel_width(
    m: Index,
    n: Index,
    k: Index,
    accumulator: ElementType,
    cpu: CpuShape,
    words: bool = False,
    transposed: bool = False,
) -> int:
    """Columns of the panels in which a B that is a weight should lie; 0 if it should stay as it is. `words`: it is read in
    words, so it has to be packed before it is used. `transposed`: its memory has K innermost."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    if isinstance(n, Dim) or isinstance(k, Dim) or n < lanes or k < 2:
        return 0
    if isinstance(m, int) and m <= 4 and not words:
        return 0  # each element is used so seldom that reading it in order is all that counts
    if transposed and not words and isinstance(m, int) and m <= FEW_ROWS:
        streams = n * k * accumulator.itemsize > cpu.l2 // 2
        as_it_lies = OperandFacts(plain=True, unit_row=False, unit_depth=True)
        few = _few(m, n, k, accumulator.itemsize, lanes, as_it_lies, streams, cpu)
        if few is not None and m >= 0.95 * -(-m // few.lanes) * few.lanes:
            # Within 1 % of what panels give where rows fill vectors, and packing takes more than a run: GPT-2's first
            # call 450 ms instead of 850.
            return 0
    across = -(-n // lanes)
    if (
        not words
    ):  # of a last panel, only vectors with columns are computed; three load less for each multiplication
        return (across if across < 3 else 2 if across == 4 else 3) * lanes

    def computed(vectors: int) -> int:
        rows = _panel_rows(m, vectors, cpu)
        down = -(-m // rows) * rows if isinstance(m, int) else 1
        return down * -(-n // (vectors * lanes)) * vectors

    # Three vectors load less for each multiplication, if they compute no more that nobody wants.
    return min((3, 2, 1), key=computed) * lanes


def _panel_rows(m: Index, vectors: int, cpu: CpuShape) -> int:
    """Rows of the register tile beside `vectors` vectors of B: 8 x 3 or 12 x 2 of 32 registers, 4 x 3 or 6 x 2 of 16."""
    most = max(1, min(12, (cpu.registers - vectors - 1) // vectors))
    most -= most % 2 if most > 1 else 0
    return balanced(m, most) if isinstance(m, int) else most


def _summing_rows(m: Index, vectors: int, cpu: CpuShape) -> int:
    """The same where the totals of chains have to fit beside the sums: 8 x 2, not 12 x 2."""
    registers = min(cpu.registers, 9 * vectors + 1) if vectors > 1 else cpu.registers
    return _panel_rows(m, vectors, replace(cpu, registers=registers))


def _from_panels(
    m: Index,
    n: Index,
    k: Index,
    size: int,
    lanes: int,
    a: OperandFacts,
    width: int,
    cpu: CpuShape,
    words: bool,
) -> ContractionSchedule:
    """B is packed already. If A lies in memory it is read there: some rows of it, over all of K, stay in L2 while B's
    panels pass by, each of which is fetched while the one before is used, if there is room for it. (That its rows may meet in
    the same sets of L1 costs less than packing it or cutting K.)"""
    vectors = width // lanes
    rows = _fitting_rows(m, vectors, cpu) if words else _summing_rows(m, vectors, cpu)
    em, ek = _assume(m), _assume(k)
    fitting = cpu.l2 // 2 // (ek * size)
    if a.plain and isinstance(k, int) and fitting >= min(em, rows):
        if cpu.by_lane and a.unit_depth:  # beside the sums, a vector of each row
            rows = dividing(m, (cpu.registers - vectors - 1) // (vectors + 1) // 2 * 2)
        down = -(-em // rows)
        # Some parts of the rows, so that a thread finds in its own caches what it made of them before.
        tiles = max(1, min(fitting // rows, max(PANEL_TILES, -(-down // PANEL_PARTS))))
        task_rows = rows * balanced(down, tiles)
        task_columns = width * max(1, TASK_WORK // (task_rows * width * k))
        known = isinstance(m, int) and isinstance(n, int) and k > UNROLL
        ahead = known and down >= 4 and (min(em, task_rows) + 2 * width) * k * size <= cpu.l2
        return ContractionSchedule("direct", lanes, rows, vectors, k, task_rows, task_columns, ahead=ahead)
    block_k = max(UNROLL, cpu.l1 * 9 // 16 // (rows * size)) * (WORDS_DEEPER if words else 1)
    if isinstance(k, int):
        block_k = balanced(k, block_k)
        block_k = max(1, min(k, -(-block_k // UNROLL) * UNROLL))
    across = max(1, cpu.l2 // 2 // (block_k * size) // width)
    task_rows, task_columns = rows * _even(m, rows, 8), width * _even(n, width, across)
    return ContractionSchedule("packed", lanes, rows, vectors, block_k, task_rows, task_columns)


def _even(extent: Index, tile: int, most: int) -> int:
    """At most `most` tiles for a task, so that tasks are equal: threads get equal numbers of them."""
    return most if isinstance(extent, Dim) else balanced(max(1, -(-extent // tile)), most)


def _dot(
    m: int, n: int, k: int, lanes: int, cpu: CpuShape, words: bool = False, foresees: bool = False
) -> ContractionSchedule:
    """Vectors run along K, each result ends in a sum over lanes: both operands are read as they lie. With `foresees`, the next
    columns of a large B are asked for. (Measured against the scheme *few*: 17 x 4096 x 4096 98 % of the peak instead of 62,
    20 x 768 x 768 94 % instead of 79; six rows by four columns load less for a product than six by three.)"""
    rows = balanced(m, 8 if n == 1 else 6 if cpu.registers >= 32 or words else 3)
    if n == 1:
        return ContractionSchedule("dot", lanes, rows, 1, 0, 8 * rows, 1, 2)
    # A correction of words is one row more.
    fitting = _accumulators(cpu) // rows if words else (cpu.registers - 3) // (rows + 1)
    columns = max(1, min(n, 8 if rows == 1 else 4, fitting))
    down = -(-max(m, 1) // rows)
    if n <= 16 * columns:  # few columns, which all tasks may read: tasks are some rows
        down = balanced(down, -(-TASK_WORK // (rows * n * k)))
    foresee = columns if foresees else 0
    return ContractionSchedule("dot", lanes, rows, columns, 0, rows * down, 16 * columns, 2, foresee=foresee)


def _streams(m: int, k: int, size: int, lanes: int, cpu: CpuShape) -> ContractionSchedule:
    """The scheme *dot* with a B that comes from memory: some rows at a time, while the next are fetched to L2. (Zen 4 reads
    30 to 35 GB/s, 27 if nothing is fetched.) Of rows shorter than two pages one after the other is faster, which the
    hardware foresees (30 GB/s; eight at a time: 27)."""
    if k * size < 2 * PAGE:
        return ContractionSchedule("dot", lanes, m, 1, 0, m, max(16, (128 << 10) // (k * size)), 8)
    columns = min(8, _accumulators(cpu) // m)
    return ContractionSchedule("dot", lanes, m, columns, 0, m, 8 * columns, 2, foresee=columns)


def _accumulators(cpu: CpuShape) -> int:
    """Registers that hold sums in the scheme *dot*."""
    return max(4, (cpu.registers - 8) * 3 // 4)


def _tasks(m: int, n: int, k: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a parallel task: `TASK_WORK` multiply-adds or more."""
    tile = max(1, rows * columns * k)
    tiles = max(1, -(-TASK_WORK // tile))
    down = -(-m // rows)
    take = min(down, tiles)
    across = max(1, -(-tiles // take))
    return rows * take, columns * across


#: As `choose`: what gives a contraction its schedule.
Chooser = Callable[..., ContractionSchedule]


def cpu_shape(target: TargetDescription) -> CpuShape:
    """What the schedule needs of a target. LLVM splits vectors of 128 bits where they are too wide."""
    return CpuShape(
        max(128, target.vector_bits),
        target.vector_registers,
        target.l1_bytes,
        target.l2_bytes,
        halved=target.cpu in HALVING and target.vector_bits == 512,
        by_lane=target.architecture in ("aarch64", "arm64"),
    )
