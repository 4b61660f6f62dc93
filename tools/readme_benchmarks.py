"""Insert the newest figures of benchmarks/results into the README, and draw their charts."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from mlm_infer.benchmarks.chart import chart_path, save_charts
from mlm_infer.benchmarks.compare import paired_ratios
from mlm_infer.benchmarks.report import instruction_sets, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
BEGIN, END = "<!-- benchmarks: python tools/readme_benchmarks.py -->", "<!-- end -->"
CHARTED = "distilroberta"


def newest() -> dict[tuple[str, str], Path]:
    """Return the newest results by instruction set and shape.

    A run of its own kind, with other threads or texts than usual, says so in its name and is not taken: the name is
    the date, or the date and the instruction set or the shape that it measured.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem):
        results = read(path)
        if not all(
            "instruction_set" in engine for engines in results["shapes"].values() for engine in engines.values()
        ):
            # The first version told no instruction sets.
            continue
        sets = instruction_sets(results)
        if path.stem.removeprefix(results["date"]).removeprefix("-") in {"", *sets, *results["shapes"]}:
            # A shape that is a folder is somebody's own model.
            found |= {(kind, shape): path for shape in results["shapes"] if "/" not in shape for kind in sets}
    return found


def read(path: Path) -> Any:
    """Return the contents of a results file."""
    return json.loads(path.read_text(encoding="utf-8"))


def figures() -> str:
    """Return a table of all shapes on all instruction sets, and a chart for each instruction set."""
    chosen = newest()
    rows = [row for (kind, shape), path in chosen.items() for row in _rows(read(path), kind, shape, path)]
    header = ["", "processor", "25 tokens", "128 tokens", "bulk", "memory", "measured"]
    parts = [table(header, rows)]
    for (kind, shape), path in chosen.items():
        if shape == CHARTED:
            file = chart_path(path, kind).relative_to(ROOT)
            parts.append(f"![Speed-up over the transformers pipeline, {kind}, {read(path)['date']}]({file})")
    return "\n\n".join(parts) + "\n"


def _rows(results: Mapping[str, Any], kind: str, shape: str, path: Path) -> Iterator[list[str]]:
    """Yield the rows of our int8 model of a shape, and fp32 of the charted one, with the speed-up over the pipeline."""
    engines = results["shapes"][shape]
    own = instruction_sets(results)[0]
    for name, engine in engines.items():
        shown = ("mlm-infer int8", "mlm-infer fp32") if shape == CHARTED else ("mlm-infer int8",)
        if engine["instruction_set"] != kind or not name.startswith(shown):
            continue
        base = engines[engine["base"]]
        fastest = [f"{statistics.median(paired_ratios(engine, base, length)):.1f}x" for length in ("25", "128", None)]
        times = [f"{engine['latency_ms'][length]['p50']:.1f} ms" for length in ("25", "128")]
        times.append(f"{engine['bulk']['texts_per_second']:.0f}/s")
        yield [
            f"{shape}, {name.split()[1].rstrip(',')}",
            f"{results['cpu']}, {kind if kind == own else f'{own} restricted to {kind}'}",
            *(f"{time} ({ratio})" for time, ratio in zip(times, fastest, strict=True)),
            f"{engine['peak_memory_mb']:.0f} MB",
            f"[{results['date']}]({path.with_suffix('.md').relative_to(ROOT)})",
        ]


def updated(readme: str) -> str:
    """Return a README with updated figures."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    return pattern.sub(lambda _match: f"{BEGIN}\n{figures()}{END}", readme)


@click.command()
def main() -> None:
    """Rewrite the README, and draw the charts in it."""
    for path in {path for (_, shape), path in newest().items() if shape == CHARTED}:
        save_charts(read(path), path)
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
