"""`python -m mlm_infer.benchmarks.backends BUNDLE`: the backends that run a bundle's ONNX models, in turns."""

import operator
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mlm_infer import DeviceError, InputError, MaskFiller
from mlm_infer.runtime.cpu import cpu_kind, cpu_name
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table

from .texts import many_texts, single_texts

_WAYS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=11, show_default=True, help="Measurements of each, in turns.")
@click.option("--sentences", default=200, show_default=True, help="Review sentences in bulk.")
@command_errors
def main(bundle: Path, threads: int, rounds: int, sentences: int) -> None:
    """Print times of single texts and of bulk, and the share of masks with the first answer of ONNX Runtime's fp32.

    Brackets give the speed over ONNX Runtime's int8, as the median of the ratios of runs that followed one another.
    """
    fillers = {}
    for backend, precision in _WAYS:
        try:
            filler = MaskFiller(bundle, device="cpu", backend=backend, precision=precision, threads=threads)
        except (DeviceError, InputError) as error:
            click.echo(f"left out: {error}", err=True)
        else:
            fillers[f"{filler.info.provider.removesuffix('ExecutionProvider')} {precision}"] = filler
    first = next(iter(fillers.values()))
    texts = many_texts(first, "validation")[:sentences]
    answers = {name: _answers(filler, texts) for name, filler in fillers.items()}
    columns: list[dict[str, str]] = []
    for length in (25, 128):
        (text,) = single_texts(first, length, 1)
        columns.append(_times(fillers, [text], rounds))
    columns.append(_times(fillers, texts, max(3, rounds // 3)))
    exact = next(iter(answers.values()))
    rows = [
        [name, *(column[name] for column in columns), f"{statistics.mean(map(operator.eq, answers[name], exact)):.1%}"]
        for name in fillers
    ]
    click.echo(f"{bundle.name}, {cpu_name()} ({cpu_kind()}), {threads} threads")
    click.echo(format_table(["", "25 tokens", "128 tokens", "a text in bulk", "same first answer"], rows))


def _answers(filler: MaskFiller, texts: Sequence[str]) -> list[int]:
    """Return the first answer for every mask; this also warms up."""
    return [mask.predictions[0].token_id for each in filler.fill_batch(texts) for mask in each.masks]


def _times(fillers: Mapping[str, MaskFiller], texts: Sequence[str], rounds: int) -> dict[str, str]:
    """Return for each filler the median time of a text, and its speed over ONNX Runtime's int8."""
    seconds: dict[str, list[float]] = {name: [] for name in fillers}
    for number in range(rounds + 1):
        for name, filler in fillers.items():
            started = time.perf_counter()
            filler.fill_batch(texts)
            # The first round fills caches and memory pools.
            if number:
                seconds[name].append((time.perf_counter() - started) / len(texts))
    base = seconds.get("CPU int8", next(iter(seconds.values())))
    return {
        name: f"{1e3 * statistics.median(own):.2f} ms ({statistics.median(map(operator.truediv, base, own)):.2f}x)"
        for name, own in seconds.items()
    }


if __name__ == "__main__":
    main()
