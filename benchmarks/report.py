"""Turns a results file into the tables of the documentation."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .busy import MOST_BUSY
from .compare import paired_ratios
from .ratios import WIDTH, median_interval, relative_width
from .workers import PIPELINE, is_ours

__all__ = ["bold", "instruction_sets", "markdown", "speed_up", "table"]


def markdown(results: Mapping[str, Any], shapes: Sequence[str] | None = None) -> str:
    """Return the results as Markdown: tables for each shape, and the environment of the measurement.

    Args:
        results: What `python -m mlm_infer.benchmarks.peers` wrote.
        shapes: The shapes to include, with the first table of each only; None for everything.
    """
    threads = f"{results['threads']} thread{'s' if results['threads'] > 1 else ''}"
    sets = ", restricted to ".join(instruction_sets(results))
    where = results.get("gpu") or f"{results['cpu']} ({sets})"
    parts = [f"{where}, {threads}; `{results['command']}`, {results['date']}."]
    for shape, engines in results["shapes"].items():
        if shapes is not None and shape not in shapes:
            continue
        parts.append(f"**{shape}**\n\n{_main_table(engines, results['quality'])}")
        if "int8_peak_share" in results["derived"].get(shape, {}):
            parts += [*_against_openvino(engines), _peak(results, shape)]
        parts += _conditions(results, shape)
        if shapes is None:
            parts.append(_details(engines))
    if results["quality"]:
        parts.append(
            "Speed uses random weights. Quality uses a trained model (`tools/trained_model.py`): top-1 agreement with "
            "the pipeline on unseen review sentences."
        )
    parts.append(
        "Brackets hold the speed-up over the pipeline: the median of the ratios of times that were measured one after "
        "the other, and its 95 % confidence interval (that of the sign test; there is none of fewer than six ratios)."
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"Versions: {versions}.")
    return "\n\n".join(parts) + "\n"


def instruction_sets(results: Mapping[str, Any]) -> list[str]:
    """Return the instruction sets of a results file, the processor's own one first."""
    found = (engine["instruction_set"] for engines in results["shapes"].values() for engine in engines.values())
    return list(dict.fromkeys(found))


def _conditions(results: Mapping[str, Any], shape: str) -> Iterator[str]:
    """Yield what readers must know of how a shape was measured: ratios that stayed wide, a busy machine, engines."""
    engines = results["shapes"][shape]
    wide = []
    for name, engine in engines.items():
        ratios = {
            place: paired_ratios(engine, engines[engine["base"]], place) for place in [*engine["latency_ms"], None]
        }
        widths = {place: relative_width(each) for place, each in ratios.items()}
        found = [f"{_place(place)} {width:.0%}" for place, width in widths.items() if WIDTH <= width < math.inf]
        wide += [f"{name} ({', '.join(found)})"] if found else []
    # Results of the first versions had no such limits.
    if wide and "limits" in results:
        yield (
            f"Measuring stopped after {results['limits']['minutes']:g} minutes for each column, with intervals wider "
            f"than {WIDTH:.0%} of the speed-up: {', '.join(wide)}."
        )
    busy = results.get("others", {}).get(shape, {})
    if busy:
        what, share = max(busy.items(), key=lambda each: float(each[1]))
        quiet = share <= MOST_BUSY
        yield (
            f"{'' if quiet else '**The machine was busy.** '}Other processes took up to {share:.1%} of the processors' "
            f"time, during {what}{'' if quiet else f'; a quiet machine has at most {MOST_BUSY:.0%}'}."
        )
    for name, why in results.get("left_out", {}).get(shape, {}).items():
        yield f"{name} is left out: {why}"


def _place(length: str | None) -> str:
    return f"at {length} tokens" if length else "in bulk"


def _main_table(engines: Mapping[str, Any], quality: Mapping[str, Any]) -> str:
    lengths = list(engines[PIPELINE]["latency_ms"])
    header = [
        "",
        "instruction set",
        *(f"{length} tokens, p50 / p95" for length in lengths),
        "bulk",
        "load + first answer",
        "memory",
    ]
    header += ["quality"] if quality else []
    rows = []
    for name, engine in engines.items():
        # On each instruction set, engines are compared with the pipeline on the same one.
        base = engines[engine["base"]]
        cells = [bold(name), engine["instruction_set"]]
        for length in lengths:
            found = engine["latency_ms"][length]
            cells.append(f"{found['p50']:.1f} / {found['p95']:.1f} ms ({speed_up(engine, base, length)})")
        cells.append(f"{engine['bulk']['texts_per_second']:.0f}/s ({speed_up(engine, base, None)})")
        cells += [f"{engine['load_and_first_seconds']:.1f} s", f"{engine['peak_memory_mb']:.0f} MB"]
        # The pipeline of a second group of engines has the quality of the first.
        cells += [f"{quality[name]['top1']:.1%}" if name in quality else ""] if quality else []
        rows.append(cells)
    return table(header, rows)


def speed_up(engine: Mapping[str, Any], base: Mapping[str, Any], length: str | None) -> str:
    """Return the speed-up over an engine that took turns with this one, with its interval: `5.6x, 5.4 to 5.9`."""
    ratios = paired_ratios(engine, base, length)
    found = median_interval(ratios) if engine is not base else None
    between = f", {found[0]:.1f} to {found[1]:.1f}" if found else ""
    return f"{statistics.median(ratios):.1f}x{between}"


def _details(engines: Mapping[str, Any]) -> str:
    """Return the secondary table: throughput by call size, installed size, agreement on random weights."""
    sizes = list(engines[PIPELINE]["texts_per_second_by_call_size"])
    header = ["", *(f"calls of {size}" for size in sizes), "installed", "top-1 agreement, random weights"]
    rows = [
        [
            bold(name),
            *(f"{engine['texts_per_second_by_call_size'][size]:.0f}/s" for size in sizes),
            f"{engine['installed_mb']:.0f} MB",
            f"{engine['same_best_token']:.0%}",
        ]
        for name, engine in engines.items()
    ]
    return table(header, rows)


def _against_openvino(engines: Mapping[str, Any]) -> list[str]:
    """Return a line that compares our int8 with the faster OpenVINO variant, for each length and in bulk."""
    peers = [engine for name, engine in engines.items() if name.startswith("OpenVINO")]
    if not peers:
        return []
    ours = engines["mlm-infer int8"]
    ratios = [
        # The faster peer is the one against which our speed-up is smaller.
        f"{min(_against(ours, peer, engines, length) for peer in peers):.1f}x {_place(length)}"
        for length in [*ours["latency_ms"], None]
    ]
    return [f"int8 against the faster of the two OpenVINO variants: {', '.join(ratios)}."]


def _against(ours: Mapping[str, Any], peer: Mapping[str, Any], engines: Mapping[str, Any], length: str | None) -> float:
    """Return our speed-up over a peer; of two groups, each of which took turns with a pipeline of its own."""
    if ours["base"] == peer["base"]:
        return statistics.median(paired_ratios(ours, peer, length))
    mine, theirs = (
        statistics.median(paired_ratios(engine, engines[engine["base"]], length)) for engine in (ours, peer)
    )
    return mine / theirs


def _peak(results: Mapping[str, Any], shape: str) -> str:
    return (
        f"Bulk int8 reaches {results['derived'][shape]['int8_peak_share']:.0%} of this machine's measured int8 matmul "
        f"peak ({results['int8_peak_gmacs']:.0f} GMAC/s)."
    )


def bold(name: str) -> str:
    """Return the name of an engine, in bold if it is this package."""
    return f"**{name}**" if is_ours(name) else name


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
