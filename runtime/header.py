"""The C header of an exported library, from its signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flambeau.runtime.abi import Status

#: C types of elements. Half-precision floats have none that every compiler knows: their bits are passed.
C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "bool": "uint8_t",
}


def _tensor(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{', '.join(str(d) for d in entry['shape'])}]"


def header(signature: Mapping[str, Any]) -> str:
    """C99 and C++ text that declares every function of the library."""
    name = signature["name"]
    upper = name.upper()
    training = signature["kind"] == "training_step"
    sizes = [f"int64_t {s}" for s in signature["symbols"]]
    inputs = [f"const {C_TYPES[e['dtype']]}* {e['name']}" for e in signature["inputs"]]
    outputs = [f"{C_TYPES[e['dtype']]}* {e['name']}" for e in signature["outputs"]]
    run = ", ".join([f"{name}_t* handle", *sizes, *inputs, *outputs])
    path = ", const char* weights" if signature.get("weights_file") else ""
    lines = [
        f"/* {name}: {'one training step' if training else 'inference'}, compiled by Flambeau.",
        " *",
        " * Tensors are row-major and contiguous, of any alignment. Every function may be called from any thread; one",
        " * handle serves one thread at a time. Nothing but the C library is needed.",
        " */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"typedef struct {name}_t {name}_t;",
        "",
        "/* What the functions return. */",
        "enum {",
        *[f"    {upper}_{s.name} = {int(s)}, /* {s.message} */" for s in Status],
        "};",
        "",
        "/* Makes a handle. `threads`: how many threads a run may use, the caller's included; 1 (or less): no others.",
        *_weights(signature.get("weights_file")),
        " */",
        f"int32_t {name}_create({name}_t** handle, int32_t threads{path});",
        "",
        "/* Frees a handle and everything that it holds; null is allowed. */",
        f"void {name}_destroy({name}_t* handle);",
        "",
        "/* " + ("Runs one step and moves the handle's state forward." if training else "Runs the function."),
        *_described("sizes", signature["symbols"]),
        *[f" *   {e['name']}: {_tensor(e)}" for e in (*signature["inputs"], *signature["outputs"])],
        " */",
        f"int32_t {name}_run({run});",
        "",
        "/* Bytes of scratch memory that a run keeps in the handle. */",
        f"size_t {name}_workspace_bytes({', '.join(sizes) or 'void'});",
        "",
        "/* A status in words. The text is constant. */",
        f"const char* {name}_error(int32_t status);",
        "",
        "/* Inputs, outputs, state, types, shapes and target as JSON. The text is constant. */",
        f"const char* {name}_signature(void);",
        "",
        "/* Reads or replaces one tensor of the state; `bytes` must be its exact size."
        + ("" if training else " This library has no state."),
        *[f" *   {e['name']}: {_tensor(e)}" for e in signature["state"]],
        " */",
        f"int32_t {name}_get({name}_t* handle, const char* name, void* data, size_t bytes);",
        f"int32_t {name}_set({name}_t* handle, const char* name, const void* data, size_t bytes);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif /* {upper}_H */",
        "",
    ]
    return "\n".join(lines)


def _weights(file: str | None) -> list[str]:
    if file is None:
        return []
    return [
        f" * `weights`: the path of {file}, which was written with this library, or of a safetensors file with the same",
        " * tensors. It is read once, by this call, which also prepares them for the code (that may take as long as a run); if",
        " * it cannot be read, or holds other tensors, there is no handle.",
    ]


def _described(what: str, names: Sequence[str]) -> list[str]:
    return [f" *   {', '.join(names)}: {what}, at least 1"] if names else []
