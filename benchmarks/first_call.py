"""``python first_call.py FOLDER THREADS``: the library FOLDER/model.so gives one result. Needs nothing but Python.

What a program that ships the model does at its start, through the library's C interface.
"""

from __future__ import annotations

import ctypes
import json
import sys
from math import prod

SIZES = {"float32": 4, "int64": 8, "int32": 4, "float64": 8}


def memory(tensor: dict[str, object]) -> ctypes.Array[ctypes.c_char]:
    """Zeros for an input or output of the signature."""
    return ctypes.create_string_buffer(prod(tensor["shape"]) * SIZES[tensor["dtype"]])  # type: ignore[arg-type, index]


def main() -> None:
    library = ctypes.CDLL(f"{sys.argv[1]}/model.so")
    library.model_signature.restype = ctypes.c_char_p
    signature = json.loads(library.model_signature())
    handle = ctypes.c_void_p()
    status = library.model_create(ctypes.byref(handle), ctypes.c_int32(int(sys.argv[2])))
    buffers = [memory(t) for t in (*signature["inputs"], *signature["outputs"])]
    status = status or library.model_run(handle, *buffers)
    if status:
        raise SystemExit(f"status {status}")
    print("ready", flush=True)


if __name__ == "__main__":
    main()
