"""Exporting from the checkpoint to the bundle in its place."""

import glob
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from mlm_infer.backend import BACKENDS, backend_type
from mlm_infer.bundle import MANIFEST, TOKENIZER, TORCHSCRIPT, Manifest, ModelFile, hash_file
from mlm_infer.cpu import CpuKind, cpu_kind
from mlm_infer.errors import InputError
from mlm_infer.folders import check_output, move_into_place, writing
from mlm_infer.known_answers import record_answers

from .batches import Batch, shape_batches
from .fp16 import rounded_as_on_gpu, to_fp16
from .int8 import Budget, calibration_sentences, quantize_within
from .parity import ParityCase, ParityReport, check_case, compare, make_batches, mixes_padding, reference
from .serving import PASSES, PassError, ServingGraph, build_serving_graph
from .source import Checkpoint, Source, open_source
from .to_torchscript import TORCHSCRIPT_INPUTS, torchscript_export
from .tokenizer import plain_tokenizer

__all__ = ["export_bundle"]

_PRECISIONS = ("fp32", "fp16", "int8")


def export_bundle(
    model: str,
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] = ("fp32",),
    formats: Sequence[str] = ("onnx",),
    cpu: CpuKind | None = None,
    budget: Budget | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    without_passes: Sequence[str] = (),
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> ParityReport:
    """Export a masked language model to a bundle that `MaskFiller` opens.

    The bundle is written beside its place and renamed when it is complete and its answers have been
    compared with PyTorch's.

    Args:
        model: Hub id or folder of the checkpoint, or an ONNX file that somebody exported from one, which is
            compared with itself then.
        output: Folder to write.
        precisions: Of the ONNX models, one or more of `fp32`, `fp16` (for CUDA) and `int8` (for the CPU).
        formats: `onnx`, `torchscript` (in fp32; PyTorch calls it deprecated) or both in one bundle.
        cpu: Kind of processor to make int8 for; None takes this machine's.
        budget: What int8 and fp16 may cost; None takes the defaults of `Budget`.
        calibration_data: UTF-8 text for int8, one text a line; None takes the built-in movie reviews.
        without_passes: Graph passes to leave out, among `fusions`, `attention` and `rows`.
        overwrite: Replace an output folder that exists, once the new one is complete.
        on_step: Called with a line of text as each step begins.

    Returns:
        The comparison with PyTorch, which the bundle's manifest holds too.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false.
        ModelError: The checkpoint is no masked language model, its head has no weights, or its
            architecture cannot be exported.
        ExportError: The fp32 answers differ from PyTorch's by more than 1e-5 in a probability, or int8 or fp16
            cannot meet the budget.
        DataError: The calibration text cannot be read or is too short.
        InputError: A precision or format is not known, or TorchScript alone is asked for in another than fp32.
    """
    step = on_step or (lambda _text: None)
    _check_choice("precisions", precisions, _PRECISIONS)
    _check_choice("formats", formats, BACKENDS)
    if "onnx" not in formats and set(precisions) != {"fp32"}:
        raise InputError(f"precisions is {tuple(precisions)!r}, but TorchScript is fp32; add the format 'onnx'")
    strange = [each for each in without_passes if each not in PASSES]
    if strange:
        raise InputError(f"there is no graph pass {strange[0]!r}; the passes are {', '.join(PASSES)}")
    target = Path(output).expanduser()
    check_output(target, overwrite=overwrite)

    sentences = calibration_sentences(Path(calibration_data) if calibration_data is not None else None)

    step(f"loading {model}")
    source = open_source(model)
    tokenizer = source.tokenizer
    plain = plain_tokenizer(tokenizer)
    _check_source(source, model, precisions, formats)
    with _workplace(target) as work:
        bundle = work / "bundle"
        bundle.mkdir()
        mixed = _mixed(dict(shape_batches(tokenizer, sentences, min(source.longest, 32))))
        inputs: tuple[str, ...] = TORCHSCRIPT_INPUTS
        models: dict[str, ModelFile] = {}
        if "onnx" in formats:
            step("reading the graph" if source.foreign else "exporting through Optimum")
            exported = source.to_onnx(work / "plain")
            step("building the serving graph")
            serving = _serving_graph(source, exported, mixed, without_passes, step)
            inputs = serving.inputs
            models[source.precision] = _save(serving.model, bundle, source.precision, None, serving.details())
        if "fp16" in precisions and "fp16" not in models:
            step("converting to fp16")
            half = to_fp16(serving.model)
            models["fp16"] = _save(half, bundle, "fp16", None, serving.details())
            (work / "rounded").mkdir()
            _save(rounded_as_on_gpu(half), work / "rounded", "fp16", None, {})
        if "int8" in precisions and "int8" not in models:
            kind = cpu or cpu_kind()
            step(f"quantizing to int8 for {kind}")
            room = source.longest - tokenizer.num_special_tokens_to_add()
            small, int8 = quantize_within(
                serving.model, serving.inputs, tokenizer, room, kind, budget or Budget(), sentences, step
            )
            step(int8.summary())
            models["int8"] = _save(small, bundle, "int8", kind, serving.details() | int8.to_dict())
        if "torchscript" in formats and isinstance(source, Checkpoint):
            step("tracing for TorchScript")
            models[TORCHSCRIPT] = ModelFile("model.torchscript.pt")
            torchscript_export(source.model, mixed, bundle / models[TORCHSCRIPT].file)
        step("comparing with the file" if source.foreign else "comparing with PyTorch")
        # What the CPU makes of fp16 is not what a GPU does.
        paths = {name: bundle / each.file for name, each in models.items()}
        if (work / "rounded").exists():
            paths["fp16"] = work / "rounded" / models["fp16"].file
        cases = _parity(source, paths, inputs, budget or Budget())
        for precision in set(models) - {*precisions, TORCHSCRIPT}:
            for name in models.pop(precision).names:
                (bundle / name).unlink()
        cases = tuple(case for case in cases if case.precision in models)
        plain.save(str(bundle / TOKENIZER))
        manifest = Manifest(
            source=source.describe(),
            architecture=source.architecture,
            mask_token=tokenizer.mask_token,
            mask_id=tokenizer.mask_token_id,
            pad_id=source.pad_id,
            vocab_size=source.vocabulary,
            max_length=source.longest,
            clean_up_spaces=bool(tokenizer.clean_up_tokenization_spaces),
            inputs=inputs,
            models=models,
            parity={},
            files={path.name: hash_file(path) for path in sorted(bundle.iterdir())},
            created_with=_versions(),
            mixes_padding=mixes_padding(source, mixed, inputs),
        )
        sizes = {
            precision: sum(manifest.files[name].bytes for name in each.names) for precision, each in models.items()
        }
        report = ParityReport(cases, sizes, target)
        manifest.parity.update(report.to_dict())
        (bundle / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        record_answers(bundle)
        step(f"writing {target}")
        move_into_place(bundle, target, overwrite=overwrite)
    return report


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Give a scratch folder beside the target, gone afterwards whatever happens; sweep what a kill left."""
    prefix = f".{target.name}.export-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        if not _alive(leftover.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    try:
        with writing(target):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _check_source(source: Source, model: str, precisions: Sequence[str], formats: Sequence[str]) -> None:
    """Refuse what cannot be made of an ONNX file."""
    if not source.foreign:
        return
    if "torchscript" in formats:
        raise InputError(
            f"TorchScript is traced from a checkpoint, and {model} is an ONNX file; take the format 'onnx'"
        )
    if source.precision != "fp32" and set(precisions) != {source.precision}:
        raise InputError(
            f"{model} is {source.precision}, and nothing else can be made of it; choose --precision {source.precision}"
        )


def _serving_graph(
    source: Source, exported: Path, batch: Batch, without: Sequence[str], step: Callable[[str], None]
) -> ServingGraph:
    """Build the serving graph, leaving out a pass that does not fit somebody else's graph."""
    left_out = list(without)
    while True:
        try:
            return build_serving_graph(exported, source.vocabulary, batch, without=left_out)
        except PassError as error:
            if not source.foreign or error.name in left_out:
                raise
            step(f"leaving out the pass {error.name}, which does not fit this graph")
            left_out.append(error.name)


def _parity(source: Source, paths: dict[str, Path], inputs: Sequence[str], budget: Budget) -> tuple[ParityCase, ...]:
    sessions = {
        name: backend_type("torchscript" if name == TORCHSCRIPT else "onnx")(path, kind="cpu")
        for name, path in paths.items()
    }
    found: list[ParityCase] = []
    for name, batches in make_batches(source.tokenizer, source.longest).items():
        pairs = [(batch, reference(source, batch, inputs)) for batch in batches]
        found.extend(compare(precision, name, session, inputs, iter(pairs)) for precision, session in sessions.items())
    for case in found:
        check_case(case, budget, near=("fp16", source.precision))
    return tuple(sorted(found, key=lambda case: list(paths).index(case.precision)))


def _save(model: ir.Model, bundle: Path, precision: str, cpu: CpuKind | None, details: dict[str, Any]) -> ModelFile:
    """Write graph and weights apart: weights within the graph would be parsed and copied at every start."""
    files = ModelFile(f"model.{precision}.onnx", f"model.{precision}.weights", cpu, details)
    ir.save(model, bundle / files.file, external_data=files.weights, size_threshold_bytes=1024)
    return files


def _check_choice(name: str, found: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(found, str) or not found or not set(found) <= set(known):
        raise InputError(f"{name} is {found!r}; it must hold one or more of {', '.join(map(repr, known))}")


def _mixed(batches: dict[str, Batch]) -> Batch:
    """Return the batch whose texts differ most in length: padding is where a graph pass would go wrong."""
    return max(batches.values(), key=lambda batch: int(np.ptp(batch.attention_mask.sum(axis=1))))


def _versions() -> dict[str, str]:
    packages = (
        "mlm-infer",
        "torch",
        "transformers",
        "optimum-onnx",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "tokenizers",
    )
    found = {each.name.lower(): each.version for each in importlib.metadata.distributions() if each.name}
    return {name: found[name] for name in packages if name in found} | {"torch": torch.__version__}
