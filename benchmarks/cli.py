"""`mlm-bench`: how fast a bundle fills masks on this machine."""

import json
import statistics
import sys
import time
from pathlib import Path

import click

from mlm_infer.command import command_errors
from mlm_infer.tables import format_table

__all__ = ["main"]


@click.command()
@click.argument("model", required=False)
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or int8.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=int, help="Threads of one run.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(model: str | None, precision: str, device: str, threads: int | None, as_json: bool) -> None:
    """Measure latency and throughput of the bundle MODEL (the small model of the package without one)."""
    from mlm_infer import MaskFiller
    from mlm_infer.cpu import cpu_name
    from mlm_infer.samples import movie_reviews

    started = time.perf_counter()
    filler = MaskFiller(Path(model) if model else None, precision=precision, device=device, threads=threads)
    filler.fill("A [MASK].")
    first = time.perf_counter() - started
    reviews = movie_reviews("validation")
    texts = [" ".join(["[MASK]", *review.split()[1:]]) for review in reviews if len(review.split()) > 1]
    latencies = []
    with click.progressbar(length=300, label="Single texts", file=sys.stderr) as bar:
        for text in texts[:300]:
            before = time.perf_counter()
            filler.fill(text)
            latencies.append((time.perf_counter() - before) * 1e3)
            bar.update(1)
    before = time.perf_counter()
    filler.fill_batch(texts)
    rate = len(texts) / (time.perf_counter() - before)
    hundredths: list[float] = statistics.quantiles(latencies, n=100)
    figures = {
        "load and first answer, s": first,
        "one text, p50, ms": hundredths[49],
        "one text, p95, ms": hundredths[94],
        "bulk, texts/s": rate,
    }
    if as_json:
        click.echo(json.dumps({"precision": filler.info.precision, "cpu": cpu_name(), **figures}))
        return
    click.echo(f"{filler!r} on {cpu_name()}")
    click.echo(format_table(["figure", "value"], [[name, f"{value:.2f}"] for name, value in figures.items()]))
