"""Cache sizes of CPUs known by LLVM's names, for code that is made on another machine.

Bytes of L1 data, L2 and L3, the first two of one core; an L2 that cores share counts by its share. Sizes that the maker leaves
open are those of the best known products (Graviton for Neoverse, Raspberry Pi 4 for Cortex-A72). Sources: Arm's, Apple's,
Intel's and AMD's technical reference and optimisation manuals.
"""

from __future__ import annotations

import re

_K, _M = 1 << 10, 1 << 20

#: What most machines have at least.
TYPICAL = (32 * _K, 512 * _K, 8 * _M)

_SIZES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    (r"neoverse-(n1|n2|v1|512tvb)", (64 * _K, 1 * _M, 32 * _M)),
    (r"neoverse-(n3|v2|v3.*)", (64 * _K, 2 * _M, 36 * _M)),
    (r"apple-(m1|a14)", (128 * _K, 3 * _M, 8 * _M)),
    (r"apple-(m[2-4]|a1[5-8])", (128 * _K, 4 * _M, 8 * _M)),
    (r"cortex-a(53|55)", (32 * _K, 128 * _K, 1 * _M)),
    (r"cortex-a(57|72)", (32 * _K, 256 * _K, 1 * _M)),
    (r"cortex-a7[3-8].*|cortex-x1.*", (64 * _K, 512 * _K, 4 * _M)),
    (r"cortex-a7[1-2][05]|cortex-x[2-4]|cortex-x925", (64 * _K, 1 * _M, 8 * _M)),
    (r"a64fx", (64 * _K, 680 * _K, 8 * _M)),
    (r"haswell|broadwell|skylake|kabylake", (32 * _K, 256 * _K, 8 * _M)),
    (r"skylake-avx512|cascadelake|cooperlake", (32 * _K, 1 * _M, 24 * _M)),
    (r"icelake-server", (48 * _K, 1280 * _K, 32 * _M)),
    (r"sapphirerapids|emeraldrapids|graniterapids.*", (48 * _K, 2 * _M, 64 * _M)),
    (r"alderlake|raptorlake", (48 * _K, 1280 * _K, 24 * _M)),
    (r"znver[12]", (32 * _K, 512 * _K, 16 * _M)),
    (r"znver3", (32 * _K, 512 * _K, 32 * _M)),
    (r"znver4", (32 * _K, 1 * _M, 32 * _M)),
    (r"znver5", (48 * _K, 1 * _M, 32 * _M)),
)


def cache_sizes(cpu: str) -> tuple[int, int, int]:
    """Those of a CPU; typical ones for one that is not in the list, or for none ("")."""
    return next((sizes for pattern, sizes in _SIZES if re.fullmatch(pattern, cpu)), TYPICAL)
