"""Source locations and the errors that show them."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a source text: `line` and `column` count from 1; column 0 means the whole line."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f":{self.column}" if self.column else "")

    def render(self, text: str | None = None) -> str:
        """The location, the source line under it, and a caret. `text` is the source if it is not in a file."""
        line = (
            text.split("\n")[self.line - 1]
            if text is not None
            else linecache.getline(self.file, self.line).rstrip("\n")
        )
        if not line.strip():
            return str(self)
        column = self.column or len(line) - len(line.lstrip()) + 1
        return f"{self}\n  {line}\n  {' ' * (column - 1)}^"


class FlambeauError(Exception):
    """Base of every error that Flambeau raises on purpose.

    `location` is the user's place (or None) and is drawn under the message.
    """

    def __init__(self, message: str, location: Location | None = None, text: str | None = None) -> None:
        self.message, self.location, self.text = message, location, text
        super().__init__(message if location is None else f"{message}\n  at {location.render(text)}")


class TypeInferenceError(FlambeauError, RuntimeError):
    """Operands do not fit an operation. A RuntimeError too, because that is what PyTorch raises."""


class ParseError(FlambeauError, ValueError):
    """Text that is not IR; always has a location."""


class VerificationError(FlambeauError, ValueError):
    """IR that breaks a rule of its operation."""


class CompilationError(FlambeauError, RuntimeError):
    """The compiler could not make code."""


class NotDifferentiableError(FlambeauError, RuntimeError):
    """A derivative was asked of an operation that has none."""


def caller_location(depth: int = 2) -> tuple[str, int] | None:
    """(file, line) of the nearest frame outside this package, starting `depth` frames up; cheap enough for tracing."""
    frame: FrameType | None
    try:
        frame = sys._getframe(depth)
    except ValueError:
        return None
    while frame is not None:
        name = frame.f_code.co_filename
        internal = _INTERNAL.get(name)
        if internal is None:
            internal = is_internal(name)
        if not internal:
            return name, frame.f_lineno
        frame = frame.f_back
    return None


_INTERNAL: dict[str, bool] = {}
_FOLDERS = tuple(
    f"{_PACKAGE}{sep}{folder}{sep}"
    for sep in "/\\"
    for folder in ("frontend", "compiler", "runtime", "cli", "flambeau")
)


def is_internal(filename: str) -> bool:
    """Is `filename` one of ours? Remembered, because tracing asks at every operation."""
    found = _INTERNAL.get(filename)
    if found is None:
        found = _INTERNAL[filename] = filename.startswith(_FOLDERS) or filename.startswith("<frozen")
    return found
