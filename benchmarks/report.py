"""From a file of results to the table and the chart of the documents."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .compare import PIPELINE

__all__ = ["markdown", "save_chart"]


def markdown(results: Mapping[str, Any], shapes: Sequence[str] | None = None) -> str:
    """Return the results as Markdown: a table for each shape, and what they were measured on.

    Args:
        results: What `python -m mlm_infer.benchmarks` wrote.
        shapes: Only these.
    """
    parts = [f"{results['cpu']}, {results['threads']} threads; `{results['command']}`, {results['date']}."]
    for shape, engines in results["shapes"].items():
        if shapes is not None and shape not in shapes:
            continue
        lengths = list(next(iter(engines.values()))["latency_ms"])
        titles = [f"{length} tokens, p50 / p95" for length in lengths]
        header = ["", *titles, "bulk", "load + first answer", "peak memory", "same best token"]
        rows = [_row(name, engine, engines[PIPELINE], lengths) for name, engine in engines.items()]
        lines = [header, ["---"] * len(header), *rows]
        parts.append(f"**{shape}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        if "int8_peak_share" in results.get("derived", {}).get(shape, {}):
            share = results["derived"][shape]["int8_peak_share"]
            parts.append(
                f"Bulk int8 spends {share:.0%} of its time on what its multiply-adds need at the "
                f"{results['int8_peak_gmacs']:.0f} G a second that one product reaches here."
            )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"Versions: {versions}.")
    return "\n\n".join(parts) + "\n"


def _row(name: str, engine: Mapping[str, Any], base: Mapping[str, Any], lengths: list[str]) -> list[str]:
    cells = [f"**{name}**" if name.startswith("mlm-infer") else name]
    for length in lengths:
        found, theirs = engine["latency_ms"][length], base["latency_ms"][length]
        ratio = statistics.median(b / a for a, b in zip(found["each"], theirs["each"], strict=True))
        cells.append(f"{found['p50']:.1f} / {found['p95']:.1f} ms ({ratio:.1f}x)")
    ratio = engine["bulk"]["texts_per_second"] / base["bulk"]["texts_per_second"]
    cells.append(f"{engine['bulk']['texts_per_second']:.0f}/s ({ratio:.1f}x)")
    cells.append(f"{engine['load_and_first_seconds']:.1f} s")
    cells.append(f"{engine['peak_memory_mb']:.0f} MB")
    cells.append(f"{engine['same_best_token']:.0%}")
    return cells


def save_chart(results: Mapping[str, Any], path: Path) -> None:
    """Draw how many times as fast as the transformers pipeline each engine is.

    Args:
        results: What `python -m mlm_infer.benchmarks` wrote.
        path: PNG or SVG file to write.
    """
    from matplotlib.figure import Figure

    shape, engines = next(iter(results["shapes"].items()))
    names = [name for name in engines if name != PIPELINE][::-1]
    lengths = list(engines[PIPELINE]["latency_ms"])
    titles = [*(f"one text of {length} tokens" for length in lengths), "many texts"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(titles), sharey=True)
    for axis, title, length in zip(axes, titles, [*lengths, None], strict=True):
        values = [_speed(engines[name], engines[PIPELINE], length) for name in names]
        colors = ["#1f5fa8" if name.startswith("mlm-infer") else "#b8c0ca" for name in names]
        bars = axis.barh(names, values, color=colors)
        axis.bar_label(bars, [f"{value:.1f}x" for value in values], padding=3)
        axis.set_title(title)
        axis.margins(x=0.18)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(f"times as fast as the transformers pipeline, {shape} on {results['threads']} threads")
    figure.savefig(path, dpi=150)


def _speed(engine: Mapping[str, Any], base: Mapping[str, Any], length: str | None) -> float:
    if length is None:
        return float(engine["bulk"]["texts_per_second"] / base["bulk"]["texts_per_second"])
    pairs = zip(engine["latency_ms"][length]["each"], base["latency_ms"][length]["each"], strict=True)
    ratios: list[float] = [theirs / ours for ours, theirs in pairs]
    return statistics.median(ratios)
