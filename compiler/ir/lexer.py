"""Tokens of the IR's text, each with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flambeau.compiler.diagnostics import Location, ParseError

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<value>%[A-Za-z0-9_$.\-]+)
      | (?P<label>\^[A-Za-z0-9_$.\-]+)
      | (?P<hash>\#[A-Za-z_][\w$.]*)
      | (?P<bang>![A-Za-z_][\w$.]*)
      | (?P<hex>0x[0-9A-Fa-f]+)
      | (?P<float>-?\d+\.\d*(?:[eE][-+]?\d+)?)
      | (?P<arrow>->)
      | (?P<word>[A-Za-z_][\w$.]*)
      | (?P<int>-?\d+)
      | (?P<mark>[()\[\]{}<>,:=?])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind (a group of the pattern, or "end"), its text, and where it starts."""

    kind: str
    text: str
    position: int


class Source:
    """A text to parse, and how to say where something is in it."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file

    def location(self, position: int) -> Location:
        before = self.text[:position]
        return Location(self.file, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)

    def error(self, message: str, position: int) -> ParseError:
        return ParseError(message, self.location(position), self.text)


def tokens(source: Source) -> list[Token]:
    """All tokens, the last of kind "end". Raises ParseError at a character that starts none."""
    found: list[Token] = []
    position = 0
    while position < len(source.text):
        match = _TOKEN.match(source.text, position)
        if match is None:
            raise source.error(f"unexpected character {source.text[position]!r}", position)
        if match.lastgroup != "space":
            assert match.lastgroup is not None
            found.append(Token(match.lastgroup, match.group(), position))
        position = match.end()
    found.append(Token("end", "", len(source.text)))
    return found
