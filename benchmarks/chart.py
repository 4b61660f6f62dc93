"""Draws the charts of a results file, one for each instruction set."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .compare import paired_ratios
from .ratios import median_interval
from .report import instruction_sets
from .workers import PIPELINE, is_ours

__all__ = ["chart_path", "save_charts"]


def chart_path(results: Path, instruction_set: str) -> Path:
    """Return the file of a chart.

    Args:
        results: The results file.
        instruction_set: The instruction set.
    """
    return results.with_name(f"{results.stem}-{instruction_set}.png")


def save_charts(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw each engine's speed-up over the transformers pipeline on the first shape, for each instruction set.

    Args:
        results: What `python -m mlm_infer.benchmarks.peers` wrote.
        path: The results file, beside which the charts are written.

    Returns:
        The charts.
    """
    charts = []
    for instruction_set in instruction_sets(results):
        charts.append(chart_path(path, instruction_set))
        _draw(results, instruction_set, charts[-1])
    return charts


def _draw(results: Mapping[str, Any], instruction_set: str, path: Path) -> None:
    from matplotlib.figure import Figure

    shape, engines = next(iter(results["shapes"].items()))
    # Bar charts are drawn from the bottom up.
    names = [
        name
        for name, engine in engines.items()
        if engine["instruction_set"] == instruction_set and not name.startswith(PIPELINE)
    ][::-1]
    lengths = list(engines[PIPELINE]["latency_ms"])
    titles = [*(f"one text of {length} tokens" for length in lengths), "many texts"]
    figure = Figure(figsize=(11, 1.3 + 0.29 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axis, title, length in zip(axes, titles, [*lengths, None], strict=True):
        ratios = [paired_ratios(engines[name], engines[engines[name]["base"]], length) for name in names]
        values = [statistics.median(each) for each in ratios]
        ends = [median_interval(each) or (value, value) for each, value in zip(ratios, values, strict=True)]
        errors = [
            [value - low for (low, _), value in zip(ends, values, strict=True)],
            [high - value for (_, high), value in zip(ends, values, strict=True)],
        ]
        colors = ["#1f5fa8" if is_ours(name) else "#b8c0ca" for name in names]
        labels = [name.removesuffix(", AVX2") for name in names]
        bars = axis.barh(labels, values, color=colors, xerr=errors, error_kw={"elinewidth": 1, "ecolor": "#5a6470"})
        axis.bar_label(bars, [f"{value:.1f}x" for value in values], padding=3)
        axis.set_title(title)
        axis.margins(x=0.18)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    held = "" if instruction_set == engines[PIPELINE]["instruction_set"] else "restricted to "
    threads = f"{results['threads']} thread{'s' if results['threads'] > 1 else ''}"
    figure.suptitle(
        f"times as fast as the transformers pipeline: {shape}, {threads}, {results['cpu']} "
        f"({held}{instruction_set}), {results['date']}"
    )
    figure.savefig(path, dpi=150)
