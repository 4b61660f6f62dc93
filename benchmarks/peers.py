"""`python -m mlm_infer.benchmarks.peers`: compares this package with other engines (mlm-bench measures one bundle)."""

import datetime
import importlib.metadata
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlm_infer.errors import DeviceError, InputError
from mlm_infer.shared.command import command_errors

if TYPE_CHECKING:
    from .compare import Machine

HERE = Path(__file__).parent


@click.command()
@click.option("--shape", "shapes", multiple=True, default=["distilroberta"], show_default=True, help="Repeat for more.")
@click.option("--engine", "engines", multiple=True, help="Only these; the pipeline always runs.  [default: all]")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What all engines run on."
)
@click.option("--avx2", is_flag=True, help="Measure with AVX2 alone as well, on a processor that has more.")
@click.option("--threads", default=2, show_default=True)
@click.option("--singles", default=30, show_default=True, help="Single texts of each length.")
@click.option("--sentences", default=2000, show_default=True, help="Sentences in bulk.")
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
    sentences: int,
    trained: str | None,
    work: Path,
    output: Path | None,
) -> None:
    """Compare this package with other engines, and write figures, tables and a chart."""
    from mlm_infer.runtime.cpu import cpu_kind, cpu_name

    from .avx2 import avx2_environment
    from .compare import Machine, machine_peak
    from .prepare import OPENVINO
    from .worker import ON_DEVICE

    held = ON_DEVICE[device]
    strange = [name for name in engines if name not in held]
    if strange:
        raise InputError(f"on {device} there is no engine {strange[0]!r}; there are {', '.join(held)}")
    if avx2 and (device == "cuda" or not cpu_kind().startswith("avx512")):
        raise InputError(f"--avx2 is for a processor that has more, and this is {cpu_kind()}; leave it out")
    machines = [Machine("", cpu_kind(), {})]
    if avx2:
        machines.append(Machine(", AVX2", "avx2", avx2_environment(work / "avx2")))
    gpu = _cuda_name() if device == "cuda" else None
    # Every figure is relative to the pipeline, so it always runs.
    chosen = [name for name in held if not engines or name in engines or name == "transformers pipeline"]
    setup = _Setup(work, chosen, device, threads, machines)
    # Before any engine runs, while the machine is quiet.
    peak = machine_peak(threads)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "mlm_infer.benchmarks.peers", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "gpu": gpu,
        "threads": threads,
        "int8_peak_gmacs": peak,
        "versions": _versions() | {"openvino": OPENVINO[2].partition("==")[2]},
        "shapes": {},
        "derived": {},
        "quality": {},
    }
    for shape in shapes:
        found, derived = _measure_speed(setup, shape, singles, sentences, peak)
        results["shapes"][shape] = found
        if derived is not None:
            results["derived"][shape] = derived
    if trained:
        results["quality"] = _measure_quality(setup, trained)
    _write(results, output or HERE / "results" / f"{results['date']}.json")


def _write(results: dict[str, Any], output: Path) -> None:
    """Write the figures as JSON, a table and a chart, and print the table."""
    from .report import markdown, save_chart

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    save_chart(results, output.with_suffix(".png"))
    click.echo(markdown(results))
    _say(f"written: {output}, with a table (.md) and a chart (.png) beside it")


@dataclass(frozen=True, slots=True)
class _Setup:
    """What all measurements of a run share."""

    work: Path
    engines: list[str]
    device: Literal["cpu", "cuda"]
    threads: int
    machines: "list[Machine]"


def _measure_speed(
    setup: _Setup, shape: str, singles: int, sentences: int, peak: float
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the figures of each engine on models of a shape, and int8's share of the peak if int8 was measured."""
    from mlm_infer import MaskFiller

    from .compare import Worker, bulk_texts, compare_shape, texts_of_length
    from .prepare import prepare

    _say(f"{shape}: making models")
    paths, pythons = prepare(shape, setup.work, setup.engines, setup.device)
    with MaskFiller(paths["bundle"]) as filler:
        mask = filler.info.mask_token
        latency = {
            length: texts_of_length(filler.count_tokens, mask, length, singles)
            for length in (25, 128)
            if length <= filler.info.max_length
        }
        bulk = bulk_texts(mask, sentences)
        tokens = sum(filler.count_tokens(text) for text in bulk)
    with Worker.start_all(pythons, paths, setup.threads, setup.machines) as workers:
        found = compare_shape(workers, latency, bulk, _say)
    if "mlm-infer int8" not in found:
        return found, None
    needed = _multiply_adds(Path(paths["checkpoint"]), tokens, len(bulk)) / peak / 1e9
    taken = len(bulk) / found["mlm-infer int8"]["bulk"]["texts_per_second"]
    return found, {"tokens": tokens, "int8_peak_share": needed / taken}


def _measure_quality(setup: _Setup, trained: str) -> dict[str, Any]:
    """Return the agreement of each engine with the pipeline, on a trained checkpoint and sentences it has not seen."""
    from mlm_infer import MaskFiller

    from .compare import Worker, bulk_texts, compare_quality
    from .prepare import prepare

    _say(f"quality on {trained}: making models")
    paths, pythons = prepare(trained, setup.work, setup.engines, setup.device)
    with MaskFiller(paths["bundle"]) as filler:
        unseen = bulk_texts(filler.info.mask_token, 500, "validation")
    with Worker.start_all(pythons, paths, setup.threads, setup.machines) as workers:
        return compare_quality(workers, unseen)


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
    # DistilBERT has its own names for width and depth.
    width = config.get("hidden_size") or config["dim"]
    layers = config.get("num_hidden_layers") or config["n_layers"]
    # Per layer 12 d²: four projections of d² and a feed-forward layer of 8 d². Of the last one, K and V at all tokens.
    everywhere = (layers - 1) * 12 * width**2 + 2 * width**2
    at_masks = 10 * width**2 + width**2 + width * config["vocab_size"]
    return float(tokens * everywhere + rows * at_masks)


def _versions() -> dict[str, str]:
    names = ("mlm-infer", "onnxruntime", "torch", "transformers", "optimum-onnx", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
