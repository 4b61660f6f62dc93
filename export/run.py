"""Exporting from the checkpoint to the bundle in its place."""

import glob
import importlib.metadata
import json
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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlm_infer.backend import BACKENDS, backend_type
from mlm_infer.bundle import MANIFEST, TOKENIZER, TORCHSCRIPT, Manifest, ModelFile, hash_file
from mlm_infer.checkpoint import max_length, open_checkpoint
from mlm_infer.cpu import CpuKind, cpu_kind
from mlm_infer.errors import InputError, ModelError
from mlm_infer.folders import check_output, move_into_place
from mlm_infer.known_answers import record_answers

from .batches import Batch, shape_batches
from .fp16 import rounded_as_on_gpu, to_fp16
from .int8 import Budget, calibration_sentences, quantize_within
from .parity import ParityCase, ParityReport, check_case, compare, make_batches, mixes_padding, reference
from .serving import PASSES, build_serving_graph
from .to_onnx import optimum_export
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
        model: Hub id or folder of the checkpoint.
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
    loaded, tokenizer, missing = open_checkpoint(model, attention="eager")
    if missing:
        raise ModelError(
            f"{model} lacks {len(missing)} weights ({', '.join(missing[:3])}), which would be random numbers; "
            "fine-tune it first with mlm-train, or name a checkpoint with its masked-language-model head"
        )
    plain = plain_tokenizer(tokenizer)
    loaded.eval()
    with _workplace(target) as work:
        bundle = work / "bundle"
        bundle.mkdir()
        longest = max_length(loaded, tokenizer.model_max_length)
        mixed = _mixed(dict(shape_batches(tokenizer, sentences, min(longest, 32))))
        inputs: tuple[str, ...] = TORCHSCRIPT_INPUTS
        models: dict[str, ModelFile] = {}
        if "onnx" in formats:
            step("exporting through Optimum")
            exported = optimum_export(loaded, work / "optimum", tokenizer.model_input_names)
            step("building the serving graph")
            serving = build_serving_graph(exported, _vocabulary(loaded), mixed, without=without_passes)
            inputs = serving.inputs
            models["fp32"] = _save(serving.model, bundle, "fp32", None, serving.details())
        if "fp16" in precisions:
            step("converting to fp16")
            half = to_fp16(serving.model)
            models["fp16"] = _save(half, bundle, "fp16", None, serving.details())
            (work / "rounded").mkdir()
            _save(rounded_as_on_gpu(half), work / "rounded", "fp16", None, {})
        if "int8" in precisions:
            kind = cpu or cpu_kind()
            step(f"quantizing to int8 for {kind}")
            room = longest - tokenizer.num_special_tokens_to_add()
            small, int8 = quantize_within(
                serving.model, serving.inputs, tokenizer, room, kind, budget or Budget(), sentences, step
            )
            step(int8.summary())
            models["int8"] = _save(small, bundle, "int8", kind, serving.details() | int8.to_dict())
        if "torchscript" in formats:
            step("tracing for TorchScript")
            models[TORCHSCRIPT] = ModelFile("model.torchscript.pt")
            torchscript_export(loaded, mixed, bundle / models[TORCHSCRIPT].file)
        step("comparing with PyTorch")
        paths = {name: (work / "rounded" if name == "fp16" else bundle) / each.file for name, each in models.items()}
        cases = _parity(loaded, tokenizer, longest, paths, inputs, budget or Budget())
        for precision in set(models) - {*precisions, TORCHSCRIPT}:
            for name in models.pop(precision).names:
                (bundle / name).unlink()
        cases = tuple(case for case in cases if case.precision in models)
        plain.save(str(bundle / TOKENIZER))
        manifest = Manifest(
            source=_source(model, loaded),
            architecture=loaded.config.model_type,
            mask_token=tokenizer.mask_token,
            mask_id=tokenizer.mask_token_id,
            pad_id=_pad_id(loaded, tokenizer),
            vocab_size=_vocabulary(loaded),
            max_length=longest,
            clean_up_spaces=bool(tokenizer.clean_up_tokenization_spaces),
            inputs=inputs,
            models=models,
            parity={},
            files={path.name: hash_file(path) for path in sorted(bundle.iterdir())},
            created_with=_versions(),
            mixes_padding=mixes_padding(loaded, mixed, inputs),
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
        yield work
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(target)  # a full disk does not say which
        raise
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


def _parity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    paths: dict[str, Path],
    inputs: Sequence[str],
    budget: Budget,
) -> tuple[ParityCase, ...]:
    sessions = {
        name: backend_type("torchscript" if name == TORCHSCRIPT else "onnx")(path, kind="cpu")
        for name, path in paths.items()
    }
    found: list[ParityCase] = []
    for name, batches in make_batches(tokenizer, longest).items():
        pairs = [(batch, reference(model, batch, inputs)) for batch in batches]
        found.extend(compare(precision, name, session, inputs, iter(pairs)) for precision, session in sessions.items())
    for case in found:
        check_case(case, budget)
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


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the model's own padding id: RoBERTa counts positions from it, whatever the tokenizer says."""
    own = model.config.pad_token_id
    return int(own if own is not None else tokenizer.pad_token_id or 0)


def _source(model: str, loaded: PreTrainedModel) -> dict[str, Any]:
    folder = Path(model)
    weights = (
        {path.name: hash_file(path).sha256 for path in sorted(folder.glob("*.safetensors"))} if folder.is_dir() else {}
    )
    return {
        "model": folder.resolve().name if folder.is_dir() else model,
        "revision": getattr(loaded.config, "_commit_hash", None),
        "weights_sha256": weights,
        "config": json.loads(loaded.config.to_json_string(use_diff=True)),
    }


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
