"""A run as text and picture: a Markdown table, and bars of how many times as long each peer takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.machine import Machine
from benchmarks.workloads import WORKLOADS

Result = dict[str, Any]
COLOURS = ("#4878a8", "#c8794a", "#6a9a5b", "#8a6bb0")
HEIGHT, LEFT, UNIT = 14, 260, 110


@dataclass(frozen=True)
class Shown:
    """What a notebook shows for a text of Markdown or SVG."""

    markdown: str | None = None
    svg: str | None = None

    def _repr_markdown_(self) -> str | None:
        return self.markdown

    def _repr_svg_(self) -> str | None:
        return self.svg


def peers_of(results: Sequence[Result]) -> list[str]:
    """The peers that have times, in order."""
    return list(dict.fromkeys(n for r in results for n in r["seconds"] if n != "flambeau"))


def markdown(results: Sequence[Result], machine: Machine) -> str:
    """A table with a line for each workload."""
    from benchmarks.__main__ import limit

    known = {w.name: w for w in WORKLOADS}
    names = peers_of(results)
    lines = [
        "| workload | threads | ms | of the limit | "
        + " | ".join(f"{n} / ours" for n in names)
        + " | first call, s |"
    ]
    lines.append("|---" * (5 + len(names)) + "|")
    for r in results:
        if "flambeau" not in r["seconds"] or r["workload"] not in known:
            continue
        ours = median(r["seconds"]["flambeau"])
        ratios = [f"{median(r['seconds'][n]) / ours:.2f}" if n in r["seconds"] else "" for n in names]
        share = limit(known[r["workload"]], ours, r["threads"], machine)
        cells = [r["workload"], str(r["threads"]), f"{1e3 * ours:.3f}", share, *ratios]
        lines.append(f"| {' | '.join(cells)} | {r['first']['flambeau']:.2f} |")
    return "\n".join(lines)


def svg(results: Sequence[Result]) -> str:
    """Bars to the right of 1 are peers that take longer than Flambeau; the scale is logarithmic."""
    names = peers_of(results)
    rows = [r for r in results if "flambeau" in r["seconds"] and any(n in r["seconds"] for n in names)]
    height = 30 + len(rows) * (len(names) * HEIGHT + 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" font-family="sans-serif" font-size="11">'
    ]
    for power in range(-2, 5):
        x = LEFT + 2 * UNIT + power * UNIT
        parts.append(
            f'<line x1="{x}" y1="16" x2="{x}" y2="{height}" stroke="{"#555" if power == 0 else "#ddd"}"/>'
        )
        parts.append(f'<text x="{x}" y="12" text-anchor="middle">{2.0**power:g}×</text>')
    y = 24
    for r in rows:
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 10}" text-anchor="end">{r["workload"]} ({r["threads"]})</text>'
        )
        ours = median(r["seconds"]["flambeau"])
        for number, name in enumerate(names):
            if name in r["seconds"]:
                power = max(-2.0, min(4.0, math.log2(median(r["seconds"][name]) / ours)))
                start = LEFT + 2 * UNIT + min(power, 0.0) * UNIT
                colour = COLOURS[number % len(COLOURS)]
                wide = max(abs(power) * UNIT, 1)
                parts.append(
                    f'<rect x="{start:.1f}" y="{y}" width="{wide:.1f}" height="{HEIGHT - 3}" fill="{colour}">'
                    f"<title>{name}: {2.0**power:.2f}×</title></rect>"
                )
            y += HEIGHT
        y += 4
    return "\n".join([*parts, "</svg>"])
