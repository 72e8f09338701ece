"""Sphinx: pages are MyST notebooks, executed when they are built; the operation reference is made from the classes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate_operations import generate

HERE = Path(__file__).parent

project = "Flambeau"
author = "The Flambeau authors"
copyright = "The Flambeau authors; Apache-2.0"
extensions = ["myst_nb"]
html_theme = "furo"
html_title = "Flambeau"
exclude_patterns = ["_build", "jupyter_execute"]
source_suffix = {".md": "myst-nb"}
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
# The stages' texts are MLIR and LLVM IR, for which there are lexers only of the second.
highlight_language = "none"

generate(HERE / "_generated")
