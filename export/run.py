"""Exporting from the checkpoint to the bundle in its place."""

import glob
import importlib.metadata
import os
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from filelock import FileLock, Timeout

from mlm_infer.bundle.manifest import MANIFEST, TOKENIZER, TORCHSCRIPT, Manifest, ModelFile, hash_file
from mlm_infer.errors import InputError
from mlm_infer.runtime.backend import BACKENDS, backend_type
from mlm_infer.shared.folders import check_output, move_into_place, writing

from .batches import Batch, shape_batches, text_batches
from .fp16 import rounded_as_on_gpu, to_fp16
from .int8 import Budget, quantize_within
from .known_answers import record_answers
from .parity import ParityCase, ParityReport, check_case, compare, fp32_distance, make_batches, mixes_padding, reference
from .serving import PASSES, PassError, ServingGraph, build_serving_graph
from .source import Checkpoint, Source, open_source
from .texts import own_texts, random_texts, read_texts, review_texts, sampled_texts
from .to_torchscript import TORCHSCRIPT_INPUTS, torchscript_export
from .tokenizer import plain_tokenizer

__all__ = ["export_bundle"]

_PRECISIONS = ("fp32", "fp16", "int8")
_LOCK = "lock"


def export_bundle(
    model: str,
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] = ("fp32",),
    formats: Sequence[str] = ("onnx",),
    budget: Budget | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    without_passes: Sequence[str] = (),
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
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
        budget: What int8 and fp16 may cost; None takes the defaults of `Budget`.
        calibration_data: UTF-8 text for int8, one text a line; None takes the built-in movie reviews, or text that
            the model writes by itself where its vocabulary is not made for them.
        without_passes: Graph passes to leave out, among `fusions`, `attention` and `rows`.
        overwrite: Replace an output folder that exists, once the new one is complete: an empty one, or one that holds
            what this package wrote and nothing else, and lies apart from what is read.
        on_step: Called with a line of text as each step begins.
        on_progress: Called with the share of the work that is done, from 0 to 1, a rough estimate of the time.

    Returns:
        The comparison with PyTorch, which the bundle's manifest holds too.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false, or it may not be replaced.
        ModelError: The checkpoint is no masked language model, its head has no weights, or its
            architecture cannot be exported.
        ExportError: The fp32 answers are much further from those in fp64 than PyTorch's own, or int8 or fp16 cannot
            meet the budget, or int8 would not be much smaller than fp32.
        DataError: The calibration text cannot be read, is too short, or in another alphabet.
        InputError: A precision or format is not known, or TorchScript alone is asked for in another than fp32.
    """
    _check_choice("precisions", precisions, _PRECISIONS)
    _check_choice("formats", formats, BACKENDS)
    if "onnx" not in formats and set(precisions) != {"fp32"}:
        raise InputError(f"precisions is {tuple(precisions)!r}, but TorchScript is fp32; add the format 'onnx'")
    strange = [each for each in without_passes if each not in PASSES]
    if strange:
        raise InputError(f"there is no graph pass {strange[0]!r}; the passes are {', '.join(PASSES)}")
    target = Path(output).expanduser()
    sources = [model, *([] if calibration_data is None else [calibration_data])]
    check_output(target, overwrite=overwrite, sources=sources)
    budget = budget or Budget()
    stages = _Stages([*(["onnx"] if "onnx" in formats else []), *precisions, *formats], on_step, on_progress)

    stages.begin("load", f"loading {model}")
    source = open_source(model)
    tokenizer = source.tokenizer
    plain = plain_tokenizer(tokenizer)
    _check_source(source, model, precisions, formats)
    own = own_texts(tokenizer)
    given = None if calibration_data is None else read_texts(Path(calibration_data), tokenizer)
    with _workplace(target) as work:
        bundle = work / "bundle"
        bundle.mkdir()
        # Where the reviews do not fit, any tokens tell whether a graph still gives the same logits.
        rough = own.seen if own.fit else random_texts(tokenizer)
        mixed = _mixed(dict(shape_batches(tokenizer, rough, min(source.longest, 32))))
        checked = review_texts(tokenizer) if own.fit else rough
        inputs: tuple[str, ...] = TORCHSCRIPT_INPUTS
        models: dict[str, ModelFile] = {}
        if "onnx" in formats:
            stages.begin("graph", "reading the graph" if source.foreign else "exporting through Optimum")
            exported = source.to_onnx(work / "plain")
            stages.begin("passes", "building the serving graph")
            serving = _serving_graph(source, exported, mixed, without_passes, stages.say)
            inputs = serving.inputs
            shutil.rmtree(work / "plain")
            models[source.precision] = _save(serving.model, bundle, source.precision, serving.details())
            if not own.fit:
                stages.begin("text", f"sampling text from the model: {own.why_not}")
                own = sampled_texts(serving.model, inputs, tokenizer, _room(source))
                checked = own.unseen
        if "fp16" in precisions and "fp16" not in models:
            stages.begin("fp16", "converting to fp16")
            half = to_fp16(serving.model)
            models["fp16"] = _save(half, bundle, "fp16", serving.details())
            (work / "rounded").mkdir()
            _save(rounded_as_on_gpu(half), work / "rounded", "fp16", {})
        if "int8" in precisions and "int8" not in models:
            texts = given or own
            stages.begin("int8", f"quantizing to int8 on {texts.describe()}")
            seen, unseen = (
                text_batches(tokenizer, each, _room(source), share=0.15) for each in (texts.seen, texts.unseen)
            )
            small, int8 = quantize_within(
                serving.model, serving.inputs, seen, unseen, budget, stages.say, stages.within
            )
            stages.say(int8.summary())
            details = serving.details() | int8.to_dict() | {"calibration_text": texts.name}
            models["int8"] = _save(small, bundle, "int8", details)
        if "torchscript" in formats and isinstance(source, Checkpoint):
            stages.begin("torchscript", "tracing for TorchScript")
            models[TORCHSCRIPT] = ModelFile("model.torchscript.pt")
            torchscript_export(source.model, mixed, bundle / models[TORCHSCRIPT].file)
        stages.begin("parity", "comparing with the file" if source.foreign else "comparing with PyTorch")
        # What the CPU makes of fp16 is not what a GPU does.
        paths = {name: bundle / each.file for name, each in models.items()}
        if (work / "rounded").exists():
            paths["fp16"] = work / "rounded" / models["fp16"].file
        cases = _parity(source, paths, inputs, budget, checked, stages.within)
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
        stages.begin("write", f"writing {target}")
        move_into_place(bundle, target, overwrite=overwrite, sources=sources)
        stages.within(1.0)
    return report


class _Stages:
    """Tells which part of an export runs, and what share of the whole is done.

    Args:
        wanted: The precisions and formats that are asked for.
        on_step: Takes a line of text.
        on_progress: Takes a share.
    """

    # Seconds for DistilRoBERTa's shape on two cores; what matters is how they compare.
    _SECONDS: typing.ClassVar = {
        "load": 2.0,
        "onnx": 15.0,
        "fp16": 6.0,
        "int8": 35.0,
        "torchscript": 5.0,
        "parity": 10.0,
    }
    _GRAPH: typing.ClassVar = {"graph": "onnx", "passes": "onnx", "text": "onnx", "write": "parity"}

    def __init__(
        self,
        wanted: Sequence[str],
        on_step: Callable[[str], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        names = [name for name in self._SECONDS if name in ("load", "parity", *wanted)]
        total = sum(self._SECONDS[name] for name in names)
        ends = np.cumsum([self._SECONDS[name] / total for name in names]).tolist()
        self._spans = dict(zip(names, zip([0.0, *ends], ends, strict=False), strict=True))
        self._span = (0.0, 0.0)
        self._on_step, self._on_progress = on_step, on_progress

    def begin(self, name: str, text: str) -> None:
        """Begin a part."""
        halfway = {"passes": 0.5, "text": 0.9, "write": 0.95}.get(name, 0.0)
        self._span = self._spans.get(self._GRAPH.get(name, name), self._span)
        self.within(halfway)
        self.say(text)

    def say(self, text: str) -> None:
        """Tell what is being done."""
        if self._on_step is not None:
            self._on_step(text)

    def within(self, share: float) -> None:
        """Tell what share of the part that runs is done."""
        if self._on_progress is not None:
            start, end = self._span
            self._on_progress(min(1.0, start + share * (end - start)))


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Give a scratch folder beside the target, gone afterwards whatever happens; sweep what a kill left."""
    prefix = f".{target.name}.export-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        if _abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    # Held as long as this process lives, and seen by others on the same disk, in other containers too.
    lock = FileLock(work / _LOCK)
    try:
        with lock, writing(target):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Tell whether the process that made a scratch folder is gone."""
    lock = folder / _LOCK
    try:
        if not lock.exists():
            # A process that has just made it takes the lock next; what holds something without one is somebody else's.
            return not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > 60
        with FileLock(lock, timeout=0):
            return True
    except (Timeout, OSError):
        return False


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


def _parity(
    source: Source,
    paths: dict[str, Path],
    inputs: Sequence[str],
    budget: Budget,
    texts: Sequence[list[int]],
    within: Callable[[float], None],
) -> tuple[ParityCase, ...]:
    sessions = {
        name: backend_type("torchscript" if name == TORCHSCRIPT else "onnx")(path, kind="cpu")
        for name, path in paths.items()
    }
    # int8 that was made here has been held to its budget; what was int8 before is held to it as fp16 is.
    rounded = {"fp16", source.precision} - {"fp32"}
    found: list[ParityCase] = []
    everything = make_batches(source.tokenizer, source.longest, texts)
    for number, (name, batches) in enumerate(everything.items()):
        pairs = [(batch, reference(source, batch, inputs, everywhere=len(batches) == 1)) for batch in batches]
        for precision, session in sessions.items():
            case = compare(precision, name, session, inputs, iter(pairs))
            check_case(case, budget, rounded, partial(fp32_distance, source, session, inputs, pairs))
            found.append(case)
        within((number + 1) / len(everything))
    return tuple(sorted(found, key=lambda case: list(paths).index(case.precision)))


def _save(model: ir.Model, bundle: Path, precision: str, details: dict[str, Any]) -> ModelFile:
    """Write graph and weights apart: weights within the graph would be parsed and copied at every start."""
    files = ModelFile(f"model.{precision}.onnx", f"model.{precision}.weights", details=details)
    ir.save(model, bundle / files.file, external_data=files.weights, size_threshold_bytes=1024)
    return files


def _room(source: Source) -> int:
    special: int = source.tokenizer.num_special_tokens_to_add()
    return source.longest - special


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
