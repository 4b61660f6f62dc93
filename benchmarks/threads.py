"""`python -m mlm_infer.benchmarks.threads BUNDLE`: 1, 2, 4 and 8 threads, on a quiet and a busy machine."""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import click

from mlm_infer.shared.command import command_errors

from .busy import OtherLoad, busy_processes, refuse_busy, refuse_busy_now
from .ratios import WIDTH, median_interval, repeat_until_narrow
from .report import table
from .workers import Group, Machine, Worker

_COUNTS = (1, 2, 4, 8)
_SPINNING = {
    "long": {"session.intra_op.spin_duration_us": ""},
    "off": {"session.intra_op.allow_spinning": "0"},
}
"""What differs from this package's settings, in which threads spin briefly."""
_LENGTHS = (25, 128)
_BULK = 100
"""Texts of a round in bulk."""
_LEAST_ROUNDS = 6


@dataclass(slots=True)
class _Setting:
    """A number of threads, and whether they spin.

    Attributes:
        threads: Threads of a run.
        spinning: How threads wait for each other: `short` as in this package, `long` as by ONNX Runtime's default, or
            `off` (asleep); `-` for a single one.
        worker: The engine.
        quiet: Seconds by what was measured.
        busy: The same beside as many busy processes as there are processors.
        used: Processor seconds by what was measured, on the quiet machine.
        used_busy: The same beside busy processes.
    """

    threads: int
    spinning: str
    worker: Worker
    quiet: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, list[float]] = field(default_factory=dict)
    used: dict[str, list[float]] = field(default_factory=dict)
    used_busy: dict[str, list[float]] = field(default_factory=dict)

    def growth(self, what: str) -> list[float]:
        """Return how many times as long each measurement took beside busy processes."""
        return [slow / quick for slow, quick in zip(self.busy[what], self.quiet[what], strict=True)]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Longest time for the texts of a length and for bulk.",
)
@click.option("--even-if-busy", is_flag=True, help="Measure although other processes are busy; the table says so.")
@command_errors
def main(bundle: Path, precision: str, minutes: float, even_if_busy: bool) -> None:
    """Measure BUNDLE with 1, 2, 4 and 8 threads, as far as there are processors, alone and beside busy processes.

    The threads of a run spin briefly while they wait for each other. Each number is measured with that, with spinning
    for as long as ONNX Runtime's default is, and without spinning.
    """
    from mlm_infer import MaskFiller
    from mlm_infer.runtime.cpu import available_cpus, cpu_kind, cpu_name

    from .texts import many_texts, single_texts

    cpus = available_cpus()
    refuse_busy_now(allowed=even_if_busy)
    with MaskFiller(bundle, precision=precision, threads=1) as filler:
        fitting = [length for length in _LENGTHS if length <= filler.info.max_length]
        texts = {f"{length} tokens": [[text] for text in single_texts(filler, length, 200)] for length in fitting}
        many = many_texts(filler)
    texts["bulk"] = [many[start : start + _BULK] for start in range(0, len(many) - _BULK, _BULK)]
    others = 0.0
    with (
        _settings(bundle, precision, [count for count in _COUNTS if count <= cpus]) as settings,
        busy_processes(cpus) as burn,
    ):
        for what, parts in texts.items():
            click.echo(f"{what}, in turns", err=True)
            load = OtherLoad()
            _measure(settings, burn, what, parts, minutes * 60)
            others = max(others, load.share())
            refuse_busy(others, allowed=even_if_busy, what=what)
        click.echo(
            f"{precision} on {cpu_name()} ({cpu_kind()}), {cpus} processors. Other processes than those of this "
            f"benchmark took up to {others:.1%} of their time."
        )
        click.echo("\n" + _quiet_table(settings, list(texts)) + "\n")
        click.echo(
            f"Beside {cpus} busy processes: how many times as long it took, the median and its 95 % confidence "
            f"interval (measured until it was narrower than {WIDTH:.0%} of the median, or for {minutes:g} minutes), "
            "and that divided by what fair shares of the processors would give, 1 + threads / processors.\n"
        )
        click.echo(_busy_table(settings, list(texts), cpus))


@contextmanager
def _settings(bundle: Path, precision: str, counts: Sequence[int]) -> Iterator[list[_Setting]]:
    """Start an engine for each number of threads, spinning and not."""
    machine = Group(Machine("", "", {}), (), "")
    settings: list[_Setting] = []
    try:
        for count in counts:
            # A single thread has none to wait for.
            for spinning in ("short", "long", "off") if count > 1 else ("-",):
                paths = {"bundle": str(bundle), "device": "cpu", "settings": json.dumps(_SPINNING.get(spinning, {}))}
                worker = Worker.start(f"mlm-infer {precision}", Path(sys.executable), paths, count, machine)
                settings.append(_Setting(count, spinning, worker))
        yield settings
    finally:
        for setting in settings:
            setting.worker.stop()


def _measure(
    settings: Sequence[_Setting],
    burn: Callable[[bool], None],
    what: str,
    parts: Sequence[Sequence[str]],
    seconds: float,
) -> None:
    """Measure texts with all settings in turns, first on the quiet machine and then beside busy processes."""
    for setting in settings:
        for each in (setting.quiet, setting.busy, setting.used, setting.used_busy):
            each[what] = []

    def turn(texts: Sequence[str]) -> None:
        for on in (False, True):
            burn(on)
            for setting in settings:
                # An untimed run first: the previous engine has filled the caches with its own weights.
                answer = setting.worker.ask(texts, len(texts), warm_up=1)
                (setting.busy if on else setting.quiet)[what].append(answer["seconds"])
                (setting.used_busy if on else setting.used)[what].append(answer["cpu_seconds"] / len(texts))
        burn(False)

    def ratios() -> Iterator[list[float]]:
        return (setting.growth(what) for setting in settings)

    repeat_until_narrow((partial(turn, texts) for texts in cycle(parts)), ratios, _LEAST_ROUNDS, seconds)


def _quiet_table(settings: Sequence[_Setting], measured: Sequence[str]) -> str:
    """Return the speed on the quiet machine, with the speed-up over one thread."""
    single = settings[0]
    rows = []
    for setting in settings:
        row = [str(setting.threads), setting.spinning]
        for what in measured:
            pairs = zip(single.quiet[what], setting.quiet[what], strict=True)
            gain = statistics.median(one / several for one, several in pairs)
            seconds = statistics.median(setting.quiet[what])
            speed = f"{_BULK / seconds:.0f} texts/s" if what == "bulk" else f"{seconds * 1e3:.1f} ms"
            row.append(f"{speed} ({gain:.2f}x)")
        rows.append([*row, f"{statistics.median(setting.used['bulk']) * 1e3:.1f} ms"])
    return table(["threads", "spinning", *measured, "processor time per text in bulk"], rows)


def _busy_table(settings: Sequence[_Setting], measured: Sequence[str], cpus: int) -> str:
    """Return how much longer it takes beside busy processes, and that relative to fair shares of the processors."""
    rows = []
    for setting in settings:
        fair = 1 + setting.threads / cpus
        row = [str(setting.threads), setting.spinning]
        for what in measured:
            ratios = setting.growth(what)
            middle = statistics.median(ratios)
            low, high = median_interval(ratios) or (middle, middle)
            row.append(f"{middle:.2f}x, {low:.2f} to {high:.2f}; {middle / fair:.2f} of fair")
        rows.append([*row, f"{statistics.median(setting.used_busy['bulk']) * 1e3:.1f} ms"])
    return table(["threads", "spinning", *measured, "processor time per text in bulk"], rows)


if __name__ == "__main__":
    main()
