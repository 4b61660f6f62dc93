"""The report of a run as one HTML file, without scripts and without anything to fetch."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mlm_infer.shared.tables import without_controls

from .report import TrainReport

__all__ = ["save_page"]

# The policy holds a browser to what the file promises: no script runs and nothing is fetched, even if text of a user
# were taken for markup in spite of the escapes.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
img {{ max-width: 100%; height: auto; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #e4e7eb; }}
td.number, th.number {{ text-align: right; }}
tr.best td {{ font-weight: bold; color: #1f5fa8; }}
</style>
</head>
<body>
"""


def save_page(report: TrainReport, picture: Path, path: Path) -> None:
    """Write the page.

    Args:
        report: What it tells.
        picture: PNG file of the curve, which becomes part of the page.
        path: HTML file to write.
    """
    title = f"{report.name}: a masked language model, fine-tuned"
    parts = [
        _HEAD.format(title=_text(title)),
        f"<h1>{_text(title)}</h1>\n",
        f"<p>{_text(report.summary())}</p>\n",
        *(f"<p>Warning: {_text(each)}</p>\n" for each in report.warnings),
        _curve(report, picture),
        "<h2>Evaluations</h2>\n",
        _evaluations(report),
        _fills(report),
        "<h2>Data</h2>\n",
        _pairs(report.data_facts()),
        "<h2>Settings</h2>\n",
        _pairs(report.settings()),
        "<h2>Machine and versions</h2>\n",
        _pairs(report.machine.items()),
        "</body>\n</html>\n",
    ]
    path.write_text("".join(parts), encoding="utf-8")


def _text(value: object) -> str:
    return escape(without_controls(str(value)))


def _curve(report: TrainReport, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    alternative = (
        f"Curve of training and validation loss: perplexity {report.perplexity_before:.2f} before, "
        f"{report.perplexity:.2f} after"
    )
    return f'<p><img src="data:image/png;base64,{data}" alt="{_text(alternative)}"></p>\n'


def _evaluations(report: TrainReport) -> str:
    header, rows = report.cells()
    best = report.best
    lines = [_row(header, "th", numbers_from=1)]
    for each, cells in zip(report.evaluations, rows, strict=True):
        lines.append(_row(cells, "td", numbers_from=1, kind=' class="best"' if each is best else ""))
    return f"<div><table>\n{''.join(lines)}</table></div>\n<p>The row of the saved model is set in bold.</p>\n"


def _row(cells: Iterable[object], tag: str, *, numbers_from: int | None = None, kind: str = "") -> str:
    shown = []
    for at, cell in enumerate(cells):
        number = ' class="number"' if numbers_from is not None and at >= numbers_from else ""
        shown.append(f"<{tag}{number}>{_text(cell)}</{tag}>")
    return f"<tr{kind}>{''.join(shown)}</tr>\n"


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return f"<div><table>\n{''.join(_row(pair, 'td') for pair in pairs)}</table></div>\n"


def _fills(report: TrainReport) -> str:
    """Show each sentence before and after, and on demand after each evaluation; `details` needs no script."""
    if not report.fills:
        return ""
    first, last = report.evaluations[0].step, report.evaluations[-1].step
    rows = [(text, report.fill(text, first), report.fill(text, last)) for text in report.prompts]
    every = [(text, each.when, report.fill(text, each.step)) for text in report.prompts for each in report.evaluations]
    return (
        f"<h2>Sentences</h2>\n{_table(('sentence', 'before', 'after'), rows)}"
        "<details><summary>after each evaluation</summary>\n"
        f"{_table(('sentence', 'when', 'predictions'), every)}</details>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<div><table>\n{_row(header, 'th')}{''.join(_row(row, 'td') for row in rows)}</table></div>\n"
