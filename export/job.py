"""The stages of an export: load, graph, texts, each precision, TorchScript, compare, publish."""

import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from mlm_infer.bundle.manifest import MANIFEST, TOKENIZER, TORCHSCRIPT, Manifest, ModelFile, hash_file
from mlm_infer.runtime.backend import backend_type
from mlm_infer.shared.folders import move_into_place

from .batches import Batch, shape_batches, text_batches
from .fp16 import rounded_as_on_gpu, to_fp16
from .int8 import quantize_within
from .known_answers import known_answers
from .parity import (
    ParityCase,
    ParityReport,
    check_case,
    check_reads_text,
    compare,
    fp32_distance,
    make_batches,
    mixes_padding,
    reference,
)
from .progress import Progress
from .request import ExportRequest
from .serving import ServingGraph, build_serving_graph
from .source import Checkpoint, open_source
from .texts import Texts, own_texts, random_texts, read_texts, review_texts, sampled_texts
from .to_torchscript import TORCHSCRIPT_INPUTS, torchscript_export
from .tokenizer import plain_tokenizer

__all__ = ["ExportJob"]


class ExportJob:
    """One export. The stages run in the order of their definition.

    Args:
        request: The request.
        progress: Receives every stage.

    Raises:
        ModelError, DataError, InputError: As for `export_bundle`.
    """

    def __init__(self, request: ExportRequest, progress: Progress) -> None:
        progress.begin("load", f"loading {request.model}")
        self._request, self._progress = request, progress
        self._source = open_source(request.model, request.exporter)
        self._tokenizer = self._source.tokenizer
        self._plain = plain_tokenizer(self._tokenizer)
        request.check_source(self._source)
        self._own = own_texts(self._tokenizer)
        given = request.calibration_data
        self._given: Texts | None = None if given is None else read_texts(given, self._tokenizer)
        # If the reviews do not suit the vocabulary, random tokens suffice to compare the logits of two graphs.
        rough = self._own.seen if self._own.fit else random_texts(self._tokenizer)
        self._mixed = _mixed(dict(shape_batches(self._tokenizer, rough, min(self._source.longest, 32))))
        self._compared = review_texts(self._tokenizer) if self._own.fit else rough
        self._inputs: tuple[str, ...] = TORCHSCRIPT_INPUTS
        self._models: dict[str, ModelFile] = {}
        self._serving: ServingGraph | None = None

    def run(self, work: Path) -> ParityReport:
        """Write the bundle to the output.

        Args:
            work: An empty folder on the same file system.

        Returns:
            The comparison with the exported model.
        """
        bundle = work / "bundle"
        bundle.mkdir()
        # fp16 rounds differently on a CPU, so a copy that rounds as a GPU does is compared instead.
        compared: dict[str, Path] = {}
        if "onnx" in self._request.formats:
            serving = self._build_graph(work)
            check_reads_text(self._request.model, self._source, self._mixed, self._inputs)
            self._write(serving, serving.model, bundle, self._source.precision)
            self._fit_texts(serving)
            if self._wanted("fp16"):
                compared["fp16"] = self._write_fp16(serving, bundle, work)
            if self._wanted("int8"):
                self._write_int8(serving, bundle)
        if "torchscript" in self._request.formats and isinstance(self._source, Checkpoint):
            self._write_torchscript(self._source, bundle)
        cases = self._compare({name: bundle / each.file for name, each in self._models.items()} | compared)
        return self._publish(bundle, self._drop_unwanted(bundle, cases))

    def _wanted(self, precision: str) -> bool:
        return precision in self._request.precisions and precision not in self._models

    def _build_graph(self, work: Path) -> ServingGraph:
        foreign = self._source.foreign
        self._progress.begin(
            "graph", f"{'reading the graph of' if foreign else 'exporting with'} {self._source.exporter}"
        )
        exported = self._source.to_onnx(work / "plain")
        self._progress.begin("passes", "building the serving graph")
        serving = build_serving_graph(
            exported,
            self._source.vocabulary,
            self._mixed,
            without=self._request.without_passes,
            on_step=self._progress.say,
        )
        shutil.rmtree(work / "plain")
        self._inputs = serving.inputs
        return serving

    def _fit_texts(self, serving: ServingGraph) -> None:
        """Generate text with the model if the reviews do not suit its vocabulary."""
        if self._own.fit:
            return
        self._progress.begin("text", f"sampling text from the model: {self._own.why_not}")
        self._own = sampled_texts(serving.model, self._inputs, self._tokenizer, self._room)
        self._compared = self._own.unseen

    def _write_fp16(self, serving: ServingGraph, bundle: Path, work: Path) -> Path:
        self._progress.begin("fp16", "converting to fp16")
        half = to_fp16(serving.model)
        self._write(serving, half, bundle, "fp16")
        rounded = work / "rounded"
        rounded.mkdir()
        return rounded / _save(rounded_as_on_gpu(half), rounded, "fp16", {}).file

    def _write_int8(self, serving: ServingGraph, bundle: Path) -> None:
        texts = self._given or self._own
        self._progress.begin("int8", f"quantizing to int8 on {texts.describe()}")
        seen, unseen = (
            text_batches(self._tokenizer, each, self._room, share=0.15) for each in (texts.seen, texts.unseen)
        )
        say, within = self._progress.say, self._progress.within
        small, report = quantize_within(serving.model, serving.inputs, seen, unseen, self._request.budget, say, within)
        say(report.summary())
        self._write(serving, small, bundle, "int8", report.to_dict() | {"calibration_text": texts.name})

    def _write_torchscript(self, source: Checkpoint, bundle: Path) -> None:
        self._progress.begin("torchscript", "tracing for TorchScript")
        self._models[TORCHSCRIPT] = ModelFile("model.torchscript.pt")
        torchscript_export(source.model, self._mixed, bundle / self._models[TORCHSCRIPT].file)

    def _write(
        self, serving: ServingGraph, model: ir.Model, bundle: Path, precision: str, more: dict[str, Any] | None = None
    ) -> None:
        self._models[precision] = _save(model, bundle, precision, serving.details() | (more or {}))

    def _compare(self, paths: dict[str, Path]) -> tuple[ParityCase, ...]:
        """Compare each model with the exported one, and reject models that differ too much."""
        source = self._source
        self._progress.begin("parity", "comparing with the file" if source.foreign else "comparing with PyTorch")
        sessions = {
            name: backend_type("torchscript" if name == TORCHSCRIPT else "onnx")(path, kind="cpu")
            for name, path in paths.items()
        }
        # int8 made by this export has met its budget already; a source that is int8 itself is checked like fp16.
        rounded = {"fp16", source.precision} - {"fp32"}
        found: list[ParityCase] = []
        everything = make_batches(source.tokenizer, source.longest, self._compared)
        for number, (name, batches) in enumerate(everything.items()):
            everywhere = len(batches) == 1
            pairs = [(batch, reference(source, batch, self._inputs, everywhere=everywhere)) for batch in batches]
            for precision, session in sessions.items():
                case = compare(precision, name, session, self._inputs, iter(pairs))
                distance = partial(fp32_distance, source, session, self._inputs, pairs)
                check_case(case, self._request.budget, rounded, distance)
                found.append(case)
            self._progress.within((number + 1) / len(everything))
        return tuple(sorted(found, key=lambda case: list(paths).index(case.precision)))

    def _drop_unwanted(self, bundle: Path, cases: Sequence[ParityCase]) -> tuple[ParityCase, ...]:
        """Remove fp32 if it was only needed to make another precision; return the cases of the other models."""
        for precision in set(self._models) - {*self._request.precisions, TORCHSCRIPT}:
            for name in self._models.pop(precision).names:
                (bundle / name).unlink()
        return tuple(case for case in cases if case.precision in self._models)

    def _publish(self, bundle: Path, cases: tuple[ParityCase, ...]) -> ParityReport:
        """Write tokenizer and manifest, and move the bundle to the output."""
        source, tokenizer, target = self._source, self._tokenizer, self._request.output
        self._plain.save(str(bundle / TOKENIZER))
        files = {path.name: hash_file(path) for path in sorted(bundle.iterdir())}
        sizes = {name: sum(files[each].bytes for each in model.names) for name, model in self._models.items()}
        report = ParityReport(cases, sizes, target)
        manifest = Manifest(
            source=source.describe() | {"exporter": source.exporter},
            architecture=source.architecture,
            mask_token=tokenizer.mask_token,
            mask_id=tokenizer.mask_token_id,
            pad_id=source.pad_id,
            vocab_size=source.vocabulary,
            max_length=source.longest,
            clean_up_spaces=bool(tokenizer.clean_up_tokenization_spaces),
            inputs=self._inputs,
            models=self._models,
            parity=report.to_dict(),
            files=files,
            created_with=_versions(),
            mixes_padding=mixes_padding(source, self._mixed, self._inputs),
        )
        manifest = replace(manifest, known_answers=known_answers(bundle, manifest))
        (bundle / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        self._progress.begin("write", f"writing {target}")
        move_into_place(bundle, target, overwrite=self._request.overwrite, sources=self._request.sources)
        self._progress.within(1.0)
        return report

    @property
    def _room(self) -> int:
        """Maximum number of tokens in a text, without special tokens."""
        special: int = self._tokenizer.num_special_tokens_to_add()
        return self._source.longest - special


def _save(model: ir.Model, bundle: Path, precision: str, details: dict[str, Any]) -> ModelFile:
    """Write graph and weights to separate files: weights in the graph would be parsed and copied on every start."""
    files = ModelFile(f"model.{precision}.onnx", f"model.{precision}.weights", details=details)
    ir.save(model, bundle / files.file, external_data=files.weights, size_threshold_bytes=1024)
    return files


def _mixed(batches: dict[str, Batch]) -> Batch:
    """Return the batch with the largest difference in text lengths, since padding is where a pass may fail."""
    return max(batches.values(), key=lambda batch: int(np.ptp(batch.attention_mask.sum(axis=1))))


def _versions() -> dict[str, str]:
    packages = (
        "mlm-infer",
        "torch",
        "transformers",
        "optimum-onnx",
        "onnxscript",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "tokenizers",
    )
    found = {each.name.lower(): each.version for each in importlib.metadata.distributions() if each.name}
    return {name: found[name] for name in packages if name in found} | {"torch": torch.__version__}
