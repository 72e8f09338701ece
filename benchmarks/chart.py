"""A run as a picture, bars of how many times as long each peer takes, and as a page of its own."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import report
from benchmarks.record import Record
from benchmarks.runner import Result
from benchmarks.targets import ratios

COLOURS = ("#4878a8", "#c8794a", "#6a9a5b", "#8a6bb0", "#b8a13c")
HEIGHT, LEFT, UNIT, LOW, HIGH = 9, 260, 90, -3, 4


@dataclass(frozen=True)
class Shown:
    """What a notebook shows for a text of Markdown or SVG."""

    markdown: str | None = None
    svg: str | None = None

    def _repr_markdown_(self) -> str | None:
        return self.markdown

    def _repr_svg_(self) -> str | None:
        return self.svg


def svg(results: Sequence[Result]) -> str:
    """Bars to the right of 1 are peers that take longer than Flambeau; the scale is logarithmic."""
    names = report.peers_of(results)
    rows = [(r, found) for r in results if (found := ratios(r))]
    height = 44 + sum(len(found) * HEIGHT + 6 for _, found in rows)
    size = f'width="{LEFT + (HIGH - LOW) * UNIT + 20}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">']
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    for number, name in enumerate(names):
        x = LEFT + 110 * number
        parts.append(f'<rect x="{x}" y="2" width="10" height="10" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 14}" y="11">{html.escape(name)}</text>')
    for power in range(LOW, HIGH + 1):
        x = LEFT + (power - LOW) * UNIT
        parts.append(
            f'<line x1="{x}" y1="30" x2="{x}" y2="{height}" stroke="{"#555" if power == 0 else "#ddd"}"/>'
        )
        parts.append(f'<text x="{x}" y="26" text-anchor="middle">{2.0**power:g}×</text>')
    y = 38
    for r, found in rows:
        middle = y + (len(found) * HEIGHT) // 2 + 3
        label = f"{r['workload']} ({r['threads']})"
        parts.append(f'<text x="{LEFT - 6}" y="{middle}" text-anchor="end">{html.escape(label)}</text>')
        for name in names:
            if name not in found:
                continue
            power = max(float(LOW), min(float(HIGH), math.log2(found[name])))
            start = LEFT + (min(power, 0.0) - LOW) * UNIT
            parts.append(
                f'<rect x="{start:.1f}" y="{y}" width="{max(abs(power) * UNIT, 1):.1f}" height="{HEIGHT - 2}" '
                f'fill="{colours[name]}"><title>{html.escape(name)}: {found[name]:.2f}×</title></rect>'
            )
            y += HEIGHT
        y += 6
    return "\n".join([*parts, "</svg>"])


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Flambeau's benchmarks</title>
<style>body{{font-family:sans-serif;font-size:13px}} table{{border-collapse:collapse}} td,th{{padding:2px 8px;
text-align:right;border-bottom:1px solid #ddd}} td:first-child,th:first-child{{text-align:left}}</style>
<h1>Flambeau beside its peers</h1>
<pre>{about}</pre>
<p>Numbers under a peer's name are its time over ours: above 1, we are faster. All are medians of interleaved rounds.</p>
{tables}
{picture}
"""


def page(record: Record) -> str:
    """HTML that stands alone."""
    peers = report.peers_of(record.results)
    (before, after), results = report.MEANS, record.results
    tables = [
        ([*before, *peers, *after], report.means(results, peers)),
        (report.headings(peers), [report.line(r, record.machine(r), peers) for r in results]),
        ([*report.TARGETS], report.behind(record, results)),
        (report.memory_headings(peers), report.memory(results, peers)),
    ]
    return _PAGE.format(
        about=html.escape("\n".join(report.described(run) for run in record.runs)),
        tables="\n".join(_table(headings, lines) for headings, lines in tables if lines),
        picture=svg(results),
    )


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"

    return "<table>" + row(headings, "th") + "".join(row(cells, "td") for cells in lines) + "</table>"
