"""`python -m mlm_infer.benchmarks.bulk BUNDLE`: measures `mlm-fill --engine ray` against `mlm-fill` on one file."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from mlm_infer import MaskFiller
from mlm_infer.runtime.cpu import cpu_kind, cpu_name
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table

from .texts import bulk_texts

_COMMAND = [sys.executable, "-c", "from mlm_infer.cli.fill_command import main; main()"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rows", default=6000, show_default=True, help="Review sentences with a mask.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, in turns.")
@click.option("--threads", default=2, show_default=True, help="Threads of mlm-fill, and CPUs of all actors together.")
@command_errors
def main(bundle: Path, rows: int, rounds: int, threads: int) -> None:
    """Print rows a second, without the time to start, of one process and of one and of many actors."""
    with MaskFiller(bundle, threads=threads) as filler:
        texts = bulk_texts(filler.info.mask_token, 2000)
        tokens = sum(map(filler.count_tokens, texts)) / len(texts)
        precision = filler.info.precision
    each = f"--rows-per-part {-(-rows // (8 * threads))}".split()
    ways = {
        f"mlm-fill, {threads} threads": ["--threads", str(threads)],
        f"Ray, 1 actor of {threads} threads": ["--engine", "ray", "--actors", "1", "--threads", str(threads), *each],
        f"Ray, {threads} actors of 1 thread": ["--engine", "ray", "--actors", str(threads), "--threads", "1", *each],
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.parquet"
        _write(source, [texts[number % len(texts)] for number in range(rows)])
        for number in range(rounds):
            for place, (name, options) in enumerate(ways.items()):
                output = Path(folder) / f"{number}-{place}.parquet"
                command = [*_COMMAND, "--model", str(bundle), "--input", str(source), "--output", str(output)]
                found[name].append(_rate([*command, *options]))
    base = _middle(found[next(iter(ways))])
    table = [
        [name, f"{_middle(rates):.0f}", f"{min(rates):.0f} to {max(rates):.0f}", f"{_middle(rates) / base:.2f}"]
        for name, rates in found.items()
    ]
    click.echo(f"{bundle.name}, {precision}, {cpu_name()} ({cpu_kind()}), {rows} rows, {tokens:.0f} tokens a text")
    click.echo(format_table(["", "rows/s", "range", "ratio"], table))


def _write(path: Path, texts: Sequence[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path, row_group_size=1000)


def _rate(command: Sequence[str]) -> float:
    """Return the rows a second that a command tells in its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    found = re.search(r"\((\d+) a second\)", done.stderr)
    if found is None:
        raise RuntimeError(f"mlm-fill said {done.stderr[-500:]}")
    return float(found[1])


def _middle(rates: Sequence[float]) -> float:
    return sorted(rates)[len(rates) // 2]


if __name__ == "__main__":
    main()
