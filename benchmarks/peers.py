"""`python -m mlm_infer.benchmarks.peers`: compares this package with other engines (mlm-bench measures one bundle)."""

import datetime
import importlib.metadata
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlm_infer.errors import DeviceError, InputError
from mlm_infer.shared.command import command_errors

if TYPE_CHECKING:
    from .compare import Comparison, Limits
    from .workers import Machine

HERE = Path(__file__).parent
_LENGTHS = (25, 128)


@click.command()
@click.option("--shape", "shapes", multiple=True, help="Only this; repeat for more. Or a checkpoint.  [default: all]")
@click.option("--engine", "engines", multiple=True, help="Only these; the pipeline always runs.  [default: all]")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What all engines run on."
)
@click.option("--avx2", is_flag=True, help="Measure with AVX2 alone as well, on a processor that has more.")
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--singles", type=click.IntRange(2), default=20, show_default=True, help="Fewest single texts of each length."
)
@click.option(
    "--sentences",
    type=click.IntRange(1),
    help="Texts of a round in bulk.  [default: as many as the pipeline answers in ten seconds, 32 to 500]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Longest time for the texts of a length and for bulk, of the engines that take turns.",
)
@click.option("--even-if-busy", is_flag=True, help="Measure although other processes are busy; the table says so.")
@click.option("--trained", help="Folder of a trained checkpoint, to measure each engine's quality on.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".work/benchmarks"), show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write.  [default: benchmarks/results/DATE.json]"
)
@command_errors
def main(
    shapes: tuple[str, ...],
    engines: tuple[str, ...],
    device: Literal["cpu", "cuda"],
    avx2: bool,
    threads: int,
    singles: int,
    sentences: int | None,
    minutes: float,
    even_if_busy: bool,
    trained: str | None,
    work: Path,
    output: Path | None,
) -> None:
    """Compare this package with other engines, and write figures, tables and a chart for each instruction set.

    Every speed-up is measured until its 95 % confidence interval is narrower than 10 % of it, or the time is up.
    """
    from mlm_infer.runtime.cpu import cpu_kind, cpu_name

    from .busy import refuse_busy_now
    from .compare import Limits, machine_peak
    from .prepare import OPENVINO

    chosen, machines = _choose(engines, device, avx2, work)
    names = _shapes(shapes)
    gpu = _cuda_name() if device == "cuda" else None
    refuse_busy_now(allowed=even_if_busy)
    limits = Limits(singles, sentences, minutes, even_if_busy)
    setup = _Setup(work, chosen, device, threads, machines, limits)
    # Before any engine runs, while the machine is quiet.
    peak = machine_peak(threads)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "mlm_infer.benchmarks.peers", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "cpu_kind": cpu_kind(),
        "gpu": gpu,
        "threads": threads,
        "limits": asdict(limits),
        "int8_peak_gmacs": peak,
        "versions": _versions() | {"openvino": OPENVINO[2].partition("==")[2]},
        "quality": {},
        "shapes": {},
        "derived": {},
        "others": {},
        "left_out": {},
    }
    # Quality first: it takes minutes, and each shape is written when it is measured.
    if trained:
        results["quality"] = _measure_quality(setup, trained)
    for shape in names:
        found, derived = _measure_speed(setup, shape, peak)
        results["shapes"][shape] = found.engines
        results["derived"][shape] = derived
        results["others"][shape] = found.others
        results["left_out"][shape] = found.left_out
        _write(results, output or HERE / "results" / f"{results['date']}.json")


def _choose(
    engines: tuple[str, ...], device: Literal["cpu", "cuda"], avx2: bool, work: Path
) -> "tuple[list[str], list[Machine]]":
    """Return the engines and the instruction sets to measure."""
    from mlm_infer.runtime.cpu import cpu_kind

    from .avx2 import avx2_environment
    from .worker import ON_DEVICE
    from .workers import PIPELINE, Machine

    held = ON_DEVICE[device]
    strange = [name for name in engines if name not in held]
    if strange:
        raise InputError(f"on {device} there is no engine {strange[0]!r}; there are {', '.join(held)}")
    if avx2 and (device == "cuda" or not cpu_kind().startswith("avx512")):
        raise InputError(f"--avx2 is for a processor that has more, and this is {cpu_kind()}; leave it out")
    machines = [Machine("", cpu_kind(), {})]
    if avx2:
        machines.append(Machine(", AVX2", "avx2", avx2_environment(work / "avx2")))
    # Every figure is relative to the pipeline, so it always runs.
    return [name for name in held if not engines or name in engines or name == PIPELINE], machines


def _shapes(names: tuple[str, ...]) -> list[str]:
    """Return the shapes to measure, which are names or folders of checkpoints."""
    from .shapes import SHAPES

    strange = [name for name in names if name not in SHAPES and not (Path(name) / "config.json").is_file()]
    if strange:
        raise InputError(
            f"there is no shape {strange[0]!r}, and no checkpoint of that name; there are {', '.join(SHAPES)}"
        )
    return list(names or SHAPES)


def _write(results: dict[str, Any], output: Path) -> None:
    """Write the figures as JSON, a table and a chart, and print the table of the shape that was measured last."""
    from .chart import save_charts
    from .report import markdown

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    charts = save_charts(results, output)
    click.echo(markdown(results, list(results["shapes"])[-1:]))
    _say(f"written: {output}, with a table (.md) and charts ({', '.join(each.name for each in charts)}) beside it")


@dataclass(frozen=True, slots=True)
class _Setup:
    """What all measurements of a run share."""

    work: Path
    engines: list[str]
    device: Literal["cpu", "cuda"]
    threads: int
    machines: "list[Machine]"
    limits: "Limits"


def _measure_speed(setup: _Setup, shape: str, peak: float) -> "tuple[Comparison, dict[str, Any]]":
    """Return the figures of each engine on models of a shape, and int8's share of the peak if int8 was measured."""
    from mlm_infer import MaskFiller

    from .compare import Comparison
    from .prepare import prepare
    from .texts import many_texts, single_texts
    from .workers import Worker, free_mb, groups_that_fit

    _say(f"{shape}: making models")
    made = prepare(shape, setup.work, setup.engines, setup.device)
    with MaskFiller(made.paths["bundle"]) as filler:
        fitting = [length for length in _LENGTHS if length <= filler.info.max_length]
        # More than are ever needed; if not, they are measured again.
        latency = {length: single_texts(filler, length, 200) for length in fitting}
        bulk = many_texts(filler)
        comparison = Comparison(setup.limits, _say, left_out=dict(made.left_out))
        for group in groups_that_fit(setup.machines, list(made.pythons), made.weights_mb, free_mb()):
            with Worker.start_all(made.pythons, made.paths, setup.threads, group) as workers:
                comparison.measure(workers, latency, bulk)
        found = comparison.engines.get("mlm-infer int8")
        if found is None:
            return comparison, {}
        texts = found["bulk"]["texts_per_round"] * len(found["bulk"]["rounds_seconds"])
        tokens = sum(filler.count_tokens(text) for text in bulk[:texts])
    needed = _multiply_adds(Path(made.paths["checkpoint"]), tokens, texts) / peak / 1e9
    return comparison, {
        "tokens": tokens,
        "texts": texts,
        "int8_peak_share": needed / sum(found["bulk"]["rounds_seconds"]),
    }


def _measure_quality(setup: _Setup, trained: str) -> dict[str, Any]:
    """Return the agreement of each engine with the pipeline, on a trained checkpoint and texts it has not seen."""
    from mlm_infer import MaskFiller

    from .compare import compare_quality
    from .prepare import prepare
    from .texts import many_texts
    from .workers import Worker, free_mb, groups_that_fit

    _say(f"quality on {trained}: making models")
    made = prepare(trained, setup.work, setup.engines, setup.device)
    with MaskFiller(made.paths["bundle"]) as filler:
        unseen = many_texts(filler, "validation")[:500]
    found: dict[str, Any] = {}
    for group in groups_that_fit(setup.machines, list(made.pythons), made.weights_mb, free_mb()):
        with Worker.start_all(made.pythons, made.paths, setup.threads, group) as workers:
            found |= compare_quality(workers, unseen)
    return found


def _cuda_name() -> str:
    """Return the name of the GPU; reject a machine on which an engine would fall back to the CPU."""
    import torch

    from mlm_infer.runtime.ort_session import Session

    why_not = Session.why_no_cuda()
    if why_not or not torch.cuda.is_available():
        raise DeviceError(f"--device cuda: {why_not or 'torch finds no CUDA device; see nvidia-smi'}")
    return torch.cuda.get_device_name()


def _multiply_adds(checkpoint: Path, tokens: int, rows: int) -> float:
    """Return the multiply-adds of the dense layers, with all of the last layer but K and V at the masks only."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    # DistilBERT has its own names for sizes.
    width = config.get("hidden_size") or config["dim"]
    inner = config.get("intermediate_size") or config["hidden_dim"]
    layers = config.get("num_hidden_layers") or config["n_layers"]
    # ModernBERT's feed-forward layer has a gate, which is a third matrix.
    forward = (3 if config["model_type"] == "modernbert" else 2) * width * inner
    # Of the last layer, K and V at all tokens: two of the four projections. The head has one projection more.
    everywhere = (layers - 1) * (4 * width**2 + forward) + 2 * width**2
    at_masks = 2 * width**2 + forward + width**2 + width * config["vocab_size"]
    return float(tokens * everywhere + rows * at_masks)


def _versions() -> dict[str, str]:
    names = ("mlm-infer", "onnxruntime", "torch", "transformers", "optimum-onnx", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
