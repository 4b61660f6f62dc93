"""Turns a results file into the tables and the chart of the documentation."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .compare import PIPELINE

__all__ = ["markdown", "save_chart"]


def markdown(results: Mapping[str, Any], shapes: Sequence[str] | None = None) -> str:
    """Return the results as Markdown: tables for each shape, and the environment of the measurement.

    Args:
        results: What `python -m mlm_infer.benchmarks.peers` wrote.
        shapes: The shapes to include, with the first table of each only; None for everything.
    """
    threads = f"{results['threads']} thread{'s' if results['threads'] > 1 else ''}"
    parts = [f"{results.get('gpu') or results['cpu']}, {threads}; `{results['command']}`, {results['date']}."]
    for shape, engines in results["shapes"].items():
        if shapes is not None and shape not in shapes:
            continue
        parts.append(f"**{shape}**\n\n{_main_table(engines, results['quality'])}")
        if "int8_peak_share" in results["derived"].get(shape, {}):
            parts += [*_against_openvino(engines), _peak(results, shape)]
        if shapes is None:
            parts.append(_details(engines))
    if results["quality"]:
        parts.append(
            "Speed uses random weights. Quality uses a trained model (`tools/trained_model.py`): top-1 agreement with "
            "the pipeline on unseen review sentences."
        )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"Versions: {versions}.")
    return "\n\n".join(parts) + "\n"


def _main_table(engines: Mapping[str, Any], quality: Mapping[str, Any]) -> str:
    lengths = list(engines[PIPELINE]["latency_ms"])
    # Results of earlier versions have no instruction sets.
    sets = "instruction_set" in engines[PIPELINE]
    header = [
        "",
        *(["instruction set"] if sets else []),
        *(f"{length} tokens, p50 / p95" for length in lengths),
        "bulk",
        "load + first answer",
        "memory",
    ]
    header += ["quality"] if quality else []
    rows = []
    for name, engine in engines.items():
        # On each instruction set, engines are compared with the pipeline on the same one.
        base = engines[engine.get("base", PIPELINE)]
        cells = [_bold(name), *([engine["instruction_set"]] if sets else [])]
        for length in lengths:
            found, ratio = engine["latency_ms"][length], _speed(engine, base, length)
            cells.append(f"{found['p50']:.1f} / {found['p95']:.1f} ms ({ratio:.1f}x)")
        ratio = _speed(engine, base, None)
        cells.append(f"{engine['bulk']['texts_per_second']:.0f}/s ({ratio:.1f}x)")
        cells += [f"{engine['load_and_first_seconds']:.1f} s", f"{engine['peak_memory_mb']:.0f} MB"]
        cells += [f"{quality[name]['top1']:.1%}"] if quality else []
        rows.append(cells)
    return _table(header, rows)


def _details(engines: Mapping[str, Any]) -> str:
    """Return the secondary table: throughput by call size, installed size, agreement on random weights."""
    sizes = list(engines[PIPELINE]["texts_per_second_by_call_size"])
    header = ["", *(f"calls of {size}" for size in sizes), "installed", "top-1 agreement, random weights"]
    rows = [
        [
            _bold(name),
            *(f"{engine['texts_per_second_by_call_size'][size]:.0f}/s" for size in sizes),
            f"{engine['installed_mb']:.0f} MB",
            f"{engine['same_best_token']:.0%}",
        ]
        for name, engine in engines.items()
    ]
    return _table(header, rows)


def _against_openvino(engines: Mapping[str, Any]) -> list[str]:
    """Return a line that compares our int8 with the faster OpenVINO variant, for each length and in bulk."""
    peers = [engine for name, engine in engines.items() if name.startswith("OpenVINO")]
    if not peers:
        return []
    ours = engines["mlm-infer int8"]
    ratios = [
        # The faster peer is the one against which our speed-up is smaller.
        f"{min(_speed(ours, peer, length) for peer in peers):.1f}x {f'at {length} tokens' if length else 'in bulk'}"
        for length in [*ours["latency_ms"], None]
    ]
    return [f"int8 against the faster of the two OpenVINO variants: {', '.join(ratios)}."]


def _peak(results: Mapping[str, Any], shape: str) -> str:
    return (
        f"Bulk int8 reaches {results['derived'][shape]['int8_peak_share']:.0%} of this machine's measured int8 matmul "
        f"peak ({results['int8_peak_gmacs']:.0f} GMAC/s)."
    )


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith("mlm-infer") else name


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def save_chart(results: Mapping[str, Any], path: Path) -> None:
    """Draw each engine's speed-up over the transformers pipeline as a bar chart.

    Args:
        results: What `python -m mlm_infer.benchmarks.peers` wrote.
        path: PNG or SVG file to write.
    """
    from matplotlib.figure import Figure

    shape, engines = next(iter(results["shapes"].items()))
    # Bar charts are drawn from the bottom up.
    names = [name for name in engines if not name.startswith(PIPELINE)][::-1]
    lengths = list(engines[PIPELINE]["latency_ms"])
    titles = [*(f"one text of {length} tokens" for length in lengths), "many texts"]
    figure = Figure(figsize=(11, 1 + 0.29 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(titles), sharey=True)
    for axis, title, length in zip(axes, titles, [*lengths, None], strict=True):
        values = [_speed(engines[name], engines[engines[name].get("base", PIPELINE)], length) for name in names]
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
    """Return the speed-up over `base`: in latency at a length, in bulk throughput for None."""
    if length is None:
        return float(engine["bulk"]["texts_per_second"] / base["bulk"]["texts_per_second"])
    # The median of the ratios per text: both engines answered the same text back to back, so noise mostly cancels.
    pairs = zip(engine["latency_ms"][length]["each"], base["latency_ms"][length]["each"], strict=True)
    ratios: list[float] = [theirs / ours for ours, theirs in pairs]
    return statistics.median(ratios)
