"""``python -m benchmarks.exporting WORKLOAD FOLDER``: a model as a library, with its weights and without.

FOLDER/size/model.so has them, FOLDER/code/model.so reads them from the file beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flambeau
from benchmarks.workloads import timed


def main() -> None:
    workload, folder = timed(sys.argv[1]), Path(sys.argv[2])
    exported = flambeau.export(
        workload.setup(flambeau), tuple(flambeau.from_numpy(a) for a in workload.arrays()), name="model"
    )
    for kind, weights in (("size", "embedded"), ("code", "external")):
        exported.save(folder / kind / "model.so", weights=weights)
    print("exported")


if __name__ == "__main__":
    main()
