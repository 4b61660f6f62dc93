"""`mlm-bench`: measures how fast a bundle fills masks on this machine."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import click

from mlm_infer.errors import DependencyError
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table

__all__ = ["main"]

_LENGTHS = (25, 128)
_BULK = 500
"""Tokens of the single texts, a sentence and a paragraph; and number of texts in bulk."""

Fill = Callable[[Sequence[str]], object]


@click.command()
@click.argument("model", required=False)
@click.option("--against", help="Checkpoint of the same model; measures the transformers pipeline on it as well.")
@click.option("--threads", type=int, help="Threads per run.  [default: all]")
@click.option("--singles", default=30, show_default=True, help="Number of single texts per length.")
@click.option("--torchscript", is_flag=True, help="Also measure the TorchScript model, which runs the code in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(
    model: str | None, against: str | None, threads: int | None, singles: int, torchscript: bool, as_json: bool
) -> None:
    """Measure each model of the bundle MODEL on the CPU; the default is the small model in the package."""
    from mlm_infer import MaskFiller
    from mlm_infer.bundle.manifest import TORCHSCRIPT
    from mlm_infer.bundle.read_manifest import read_manifest
    from mlm_infer.filler import open_named
    from mlm_infer.runtime.cpu import available_cpus, cpu_name

    from .texts import many_texts, single_texts

    with MaskFiller(model, threads=threads) as first:
        folder = first.info.path
        texts = {length: single_texts(first, length, singles) for length in _LENGTHS if length <= first.info.max_length}
        bulk = many_texts(first)[:_BULK]
    engines: dict[str, Fill] = {}
    figures: dict[str, dict[str, float]] = {}
    for name in read_manifest(folder).models:
        if name == TORCHSCRIPT and not torchscript:
            click.echo(f"{name} is left out: it is code; if you trust who made it, take --torchscript", err=True)
            continue
        started = time.perf_counter()
        try:
            filler = open_named(folder, name, threads=threads)
        except DependencyError as error:
            click.echo(f"{name} is left out: {error}", err=True)
            continue
        # The first call is part of the start: it allocates memory and starts threads.
        filler.fill(bulk[0])
        figures[name] = {"load and first answer, s": time.perf_counter() - started}
        engines[name] = filler.fill_batch
    if against:
        started = time.perf_counter()
        engines["pipeline"] = _pipeline(against, threads)
        engines["pipeline"](bulk[:1])
        figures["pipeline"] = {"load and first answer, s": time.perf_counter() - started}
    _measure(engines, texts, bulk, figures)
    if as_json:
        click.echo(json.dumps({"cpu": cpu_name(), "threads": threads or available_cpus(), "figures": figures}))
        return
    click.echo(f"{folder} on {cpu_name()}, {threads or available_cpus()} threads")
    titles = list(next(iter(figures.values())))
    click.echo(
        format_table(
            ["", *titles], [[name, *(f"{found[title]:.2f}" for title in titles)] for name, found in figures.items()]
        )
    )


def _pipeline(checkpoint: str, threads: int | None) -> Fill:
    try:
        import torch
        from transformers import pipeline
    except ImportError as error:
        raise DependencyError(
            f"--against needs {error.name}; install it with: pip install 'mlm-infer[export]'"
        ) from error
    if threads:
        torch.set_num_threads(threads)
    pipe = pipeline("fill-mask", model=checkpoint, device="cpu")
    return lambda texts: pipe(list(texts), batch_size=8 if len(texts) > 1 else 1)


def _measure(
    engines: dict[str, Fill],
    texts: dict[int, list[str]],
    bulk: Sequence[str],
    figures: dict[str, dict[str, float]],
) -> None:
    """Measure the latency of single texts, then bulk throughput in four rounds, with the engines in alternation."""
    total = sum(map(len, texts.values())) + 4
    with click.progressbar(length=total, label="Measuring", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for length, some in texts.items():
            times: dict[str, list[float]] = {name: [] for name in engines}
            for text in some:
                for name, fill in engines.items():
                    # An untimed run first: the previous engine has filled the caches with its own weights.
                    fill([text])
                    times[name].append(1e3 * _seconds(fill, [text]))
                bar.update(1)
            for name, found in times.items():
                figures[name][f"{length} tokens p50, ms"] = statistics.median(found)
                figures[name][f"{length} tokens p95, ms"] = statistics.quantiles(found, n=20)[18]
        # In four rounds, so that a slow minute of the machine does not hit a single engine.
        spent = dict.fromkeys(engines, 0.0)
        for part in range(4):
            for name, fill in engines.items():
                spent[name] += _seconds(fill, bulk[part::4])
            bar.update(1)
    for name, seconds in spent.items():
        figures[name]["many texts, texts/s"] = len(bulk) / seconds


def _seconds(fill: Fill, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    fill(texts)
    return time.perf_counter() - started
