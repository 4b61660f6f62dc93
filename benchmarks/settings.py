"""`python -m mlm_infer.benchmarks.settings BUNDLE CHANGE...`: what a setting that is no option would change."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path

import click

from mlm_infer.errors import InputError
from mlm_infer.shared.command import command_errors

from .busy import OtherLoad, busy_processes, refuse_busy, refuse_busy_now
from .ratios import median_interval, repeat_until_narrow
from .report import table
from .workers import Group, Machine, Worker

_LENGTHS = (25, 128)
_LEAST_ROUNDS = 12


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("changes", nargs=-1, required=True, metavar="CHANGE...")
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--bulk", "count", default=500, show_default=True, help="Texts of a round in bulk.")
@click.option("--busy", default=0, show_default=True, help="Busy processes beside it.")
@click.option("--avx2", is_flag=True, help="Use no more than AVX2.")
@click.option(
    "--minutes", type=click.FloatRange(0), default=3.0, show_default=True, help="Longest time for texts of a length."
)
@click.option("--even-if-busy", is_flag=True, help="Measure although other processes are busy; the table says so.")
@command_errors
def main(
    bundle: Path,
    changes: tuple[str, ...],
    precision: str,
    threads: int,
    count: int,
    busy: int,
    avx2: bool,
    minutes: float,
    even_if_busy: bool,
) -> None:
    """Compare BUNDLE as it is with each CHANGE, in turns.

    A change is one setting, or several with commas between: an environment variable (GLIBC_TUNABLES=...), a setting of
    ONNX Runtime's sessions (session.intra_op.allow_spinning=0), or a constant
    (mlm_infer.runtime.predictor.TOKEN_BUDGET=512).
    """
    from mlm_infer import MaskFiller
    from mlm_infer.runtime.cpu import cpu_kind, cpu_name

    from .avx2 import avx2_environment
    from .texts import many_texts, single_texts

    held = avx2_environment(Path(".work/benchmarks/avx2")) if avx2 else {}
    parsed = [_parse(change) for change in ("", *changes)]
    refuse_busy_now(allowed=even_if_busy)
    with MaskFiller(bundle, precision=precision, threads=1) as filler:
        fitting = [length for length in _LENGTHS if length <= filler.info.max_length]
        texts = {f"{length} tokens": [[text] for text in single_texts(filler, length, 200)] for length in fitting}
        texts["bulk"] = [many_texts(filler)[:count]]
    others = 0.0
    seconds: dict[str, list[list[float]]] = {}
    with ExitStack() as stack:
        workers: list[Worker] = []
        for environment, settings in parsed:
            paths = {"bundle": str(bundle), "device": "cpu", "settings": json.dumps(settings)}
            group = Group(Machine("", "", held | environment), (), "")
            workers.append(Worker.start(f"mlm-infer {precision}", Path(sys.executable), paths, threads, group))
            stack.callback(workers[-1].stop)
        burn = stack.enter_context(busy_processes(busy))
        burn(True)
        for what, parts in texts.items():
            load = OtherLoad()
            found = seconds[what] = [[] for _ in workers]
            repeat_until_narrow(
                (partial(_turn, workers, part, found) for part in cycle(parts)),
                partial(_ratios, found),
                _LEAST_ROUNDS,
                minutes * 60,
            )
            others = max(others, load.share())
            refuse_busy(others, allowed=even_if_busy, what=what)
    kind = f"{cpu_kind()}, held to avx2" if avx2 else cpu_kind()
    beside = f", beside {busy} busy processes" if busy else ""
    click.echo(f"{precision} on {cpu_name()} ({kind}), {threads} threads{beside}. Other processes took {others:.1%}.\n")
    click.echo(_table(changes, seconds))
    click.echo("\nIn brackets: how many times as fast as the first row (median, 95 % confidence interval).")


def _parse(change: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment variables of a change, and its other settings."""
    environment: dict[str, str] = {}
    settings: dict[str, str] = {}
    for each in filter(None, change.split(",")):
        name, sign, value = each.partition("=")
        if not (sign and name):
            raise InputError(f"{each!r} is no change; write NAME=VALUE, such as session.intra_op.allow_spinning=0")
        (settings if name.startswith(("session.", "mlm_infer.")) else environment)[name] = value
    return environment, settings


def _turn(workers: Sequence[Worker], texts: Sequence[str], found: list[list[float]]) -> None:
    """Measure the texts with all workers in turns, every other time in reverse order."""
    order = range(len(workers))
    for index in order if len(found[0]) % 2 else reversed(order):
        # An untimed run first: the previous engine has filled the caches with its own weights.
        warm_up = 1 if len(texts) == 1 else 0
        found[index].append(workers[index].ask(texts, len(texts), warm_up=warm_up)["seconds"])


def _ratios(found: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """Yield the speed of each worker over the first, as one ratio a turn."""
    for each in found[1:]:
        yield [first / second for first, second in zip(found[0], each, strict=True)]


def _table(changes: Sequence[str], seconds: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Return a row for each change, with the speed over the first row."""
    rows = []
    for index, change in enumerate(("as it is", *changes)):
        cells = [_cell(found[0], found[index], index) for found in seconds.values()]
        rows.append([f"`{change}`" if index else change, *cells])
    return table(["setting", *seconds], rows)


def _cell(first: Sequence[float], each: Sequence[float], index: int) -> str:
    """Return the time of a setting, and its speed over the first."""
    milliseconds = f"{1e3 * statistics.median(each):.2f} ms"
    if not index:
        return milliseconds
    (ratios,) = _ratios([first, each])
    low, high = median_interval(ratios) or (min(ratios), max(ratios))
    return f"{milliseconds} ({statistics.median(ratios):.2f}x, {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
