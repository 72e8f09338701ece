"""Libraries: C functions around a compiled graph, as object code that needs nothing but the C library.

A library holds one function. Its parameters have roles: what the caller passes, weights that are part of the library, and
state that the handle keeps (a training step reads it and writes its successor). The functions are LLVM IR like the
rest; all they keep is in the handle, so any number of threads may use any number of handles.
"""

from __future__ import annotations

from flambeau.compiler.exporting.library import LibraryCode, export_library
from flambeau.compiler.exporting.roles import ExportRoles

__all__ = ["ExportRoles", "LibraryCode", "export_library"]
