"""The model to export: a PyTorch checkpoint or a third-party ONNX file."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlm_infer.bundle.graph_scan import check_graph
from mlm_infer.bundle.manifest import hash_file
from mlm_infer.errors import BundleError, ExportError, ModelError, first_line
from mlm_infer.locate.plain_exports import home_of, onnx_files, precision_of, read_foreign
from mlm_infer.runtime.ort_session import Session
from mlm_infer.runtime.plain_export import check_ends
from mlm_infer.shared.checkpoint import max_length, open_checkpoint
from mlm_infer.shared.masked_rows import masked_logits, rows_are_exact

from .exporters import OPSET, ExporterName, choose_exporter
from .fp64 import in_fp64
from .plain_graph import check_operators, check_task, input_types, precision_in, read_graph, with_wide_inputs

__all__ = ["Checkpoint", "OnnxFile", "Source", "open_source"]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """A masked language model to export.

    Attributes:
        tokenizer: The tokenizer, as transformers loads it.
        architecture: The `model_type` of the configuration.
        precision: Precision of the graph that `to_onnx` writes.
        vocabulary: Width of the logits.
        longest: Maximum number of tokens, special tokens included.
        pad_id: The padding id.
        foreign: Whether a third party exported the graph; a graph pass may then fail without failing the export.
        exporter: Name of the program that exports, or exported, the graph.
    """

    tokenizer: PreTrainedTokenizerBase
    architecture: str
    precision: str
    vocabulary: int
    longest: int
    pad_id: int
    foreign: bool
    exporter: str

    def to_onnx(self, folder: Path) -> Path:
        """Write a graph that outputs `logits` at every position to a new folder; return its path."""
        ...

    def logprobs(self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]) -> NDArray[np.float32]:
        """Return the log-probabilities at all positions, [batch, length, vocabulary].

        Args:
            arrays: Inputs by name, [batch, length].
            inputs: Names of the inputs to pass to the model.
        """
        ...

    def row_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the log-probabilities at some of the batch * length rows, [rows, vocabulary], faster if possible."""
        ...

    def exact_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]
    ) -> NDArray[np.float64] | None:
        """Return the log-probabilities computed in fp64, or None if the model cannot be run in fp64."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the description of the source for the manifest."""
        ...


class Checkpoint:
    """A PyTorch checkpoint.

    Args:
        model: Hub id or folder.
        exporter: The exporter; None takes the one that fits the installed transformers.

    Raises:
        ModelError: It is not a masked language model, or its head has no weights.
        DependencyError: The exporter is not installed, or does not work with this transformers.
    """

    precision = "fp32"
    foreign = False

    def __init__(self, model: str, exporter: ExporterName | None = None) -> None:
        folder = Path(model).expanduser()
        if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            files = [*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]
            # A folder with an export instead of weights: transformers would only say that weights are missing.
            exports = onnx_files([each.relative_to(folder).as_posix() for each in files])
            if exports:
                file = folder / next(iter(exports.values()))
                raise ModelError(
                    f"{model} holds an ONNX export and no checkpoint; name the file: mlm-export {file} OUT"
                )
        self._exporter = choose_exporter(exporter)
        self.exporter: str = self._exporter.name
        self.model, self.tokenizer, missing = open_checkpoint(model, attention="eager")
        if missing:
            raise ModelError(
                f"{model} lacks {len(missing)} weights ({', '.join(missing[:3])}), which would be random numbers; "
                "fine-tune it first with mlm-train, or name a checkpoint with its masked-language-model head"
            )
        self.model.eval()
        self._fast: bool | None = None
        self._name = model
        self.architecture: str = self.model.config.model_type
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        self.longest = max_length(self.model, self.tokenizer.model_max_length)
        # RoBERTa counts positions from the model's own padding id, whatever the tokenizer says.
        own = self.model.config.pad_token_id
        self.pad_id = int(own if own is not None else self.tokenizer.pad_token_id or 0)

    def to_onnx(self, folder: Path) -> Path:
        """Export with the selected exporter."""
        return self._exporter.export(self.model, folder, self.tokenizer.model_input_names)

    @torch.inference_mode()
    def logprobs(self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]) -> NDArray[np.float32]:
        """Run PyTorch."""
        logits = self.model(**{name: torch.from_numpy(arrays[name]) for name in inputs}).logits
        result: NDArray[np.float32] = torch.log_softmax(logits.float(), -1).numpy()
        return result

    @torch.inference_mode()
    def row_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Run PyTorch with its head at the rows alone, where that gives the same logits."""
        # FNet takes no attention mask, and the head at rows is written for models that do.
        if "attention_mask" not in inputs:
            self._fast = False
        if self._fast is not False:
            ids, attention = (torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask"))
            self._fast = self._fast or rows_are_exact(self.model, ids, attention)
        if not self._fast:
            everywhere = self.logprobs(arrays, inputs)
            return everywhere.reshape(-1, everywhere.shape[-1])[rows]
        logits = masked_logits(self.model, ids, attention, torch.from_numpy(rows), fast=True)
        result: NDArray[np.float32] = torch.log_softmax(logits.float(), -1).numpy()
        return result

    @torch.inference_mode()
    def exact_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]
    ) -> NDArray[np.float64] | None:
        """Run PyTorch in fp64."""
        try:
            # Converting to fp64 and back is lossless.
            logits = self.model.double()(**{name: torch.from_numpy(arrays[name]) for name in inputs}).logits
        except (RuntimeError, TypeError, ValueError):
            return None
        finally:
            self.model.float()
        result: NDArray[np.float64] = torch.log_softmax(logits.double(), -1).numpy()
        return result

    def describe(self) -> dict[str, Any]:
        """Return name, revision, hashes of the weights, and configuration."""
        folder = Path(self._name).expanduser()
        weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        name, revision = _named(folder) if folder.is_dir() else (self._name, None)
        return {
            "model": name,
            "revision": revision or getattr(self.model.config, "_commit_hash", None),
            "weights_sha256": {path.name: hash_file(path).sha256 for path in weights},
            "config": json.loads(self.model.config.to_json_string(use_diff=True)),
        }


class OnnxFile:
    """A plain ONNX export of any exporter, with its configuration and tokenizer beside it.

    Args:
        path: The file; `tokenizer.json` and `config.json` are in its folder or in the one above.

    Raises:
        ModelError: It is not a masked language model, its tokenizer cannot be read, or the two do not match.
        BundleError: A file is missing or damaged, or the graph refers to a file other than its weights.
    """

    foreign = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = home_of(path)
        named = precision_of(path)
        known = read_foreign(self._folder, {named: path.relative_to(self._folder).as_posix()})
        files = known.models[named]
        for name in files.names:
            known.check_file(self._folder, name)
        check_graph(path, files.weights)
        self._config: dict[str, Any] = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        check_task(path, self._config)
        graph = read_graph(path)
        check_operators(path, graph)
        self.precision = precision_in(graph) if named == "fp32" else named
        # Third-party graphs may take int32, so inputs are converted to the type of each.
        self._kinds = input_types(path, graph)
        self.exporter = f"{graph.producer_name} {graph.producer_version}".strip() or "an unnamed program"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(self._folder), trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelError(
                f"transformers cannot load the tokenizer of {self._folder}: {first_line(error)}"
            ) from error
        self._session = Session(path, kind="cpu", serving=False)
        check_ends(path, self._session.inputs, self._session.outputs)
        self._exact: ReferenceEvaluator | None = None
        self.architecture = known.architecture
        self.longest = known.max_length
        self.pad_id = known.pad_id
        self.vocabulary = self._width(known.mask_id)

    def _width(self, token: int) -> int:
        """Run the file once, and return the width of its logits."""
        # Two texts of seven tokens: a graph with a fixed batch or length fails here, whatever shapes it declares.
        ids = np.full((2, 7), token)
        try:
            logits = self._logits({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        except BundleError as error:
            raise ModelError(
                f"{error}; this was for two texts of seven tokens: export it with dynamic axes, or from its checkpoint "
                "with mlm-export"
            ) from error
        if logits.ndim != 3 or logits.shape[:2] != ids.shape or not np.issubdtype(logits.dtype, np.floating):
            raise ModelError(
                f"{self._path} gives logits as {logits.dtype} {list(logits.shape)}, not as floats [2, 7, vocabulary], "
                "so it is not a masked language model; export one with its head "
                "(optimum-cli export onnx --task fill-mask)"
            )
        width = int(logits.shape[2])
        if width < len(self.tokenizer):
            raise ModelError(
                f"{self._path} gives logits for {width} tokens, and its tokenizer has {len(self.tokenizer)}; put the "
                "tokenizer beside it that belongs to it"
            )
        return width

    def to_onnx(self, folder: Path) -> Path:
        """Copy the graph, with `logits` as its only output, in the opset that the graph passes are written for."""
        folder.mkdir()
        try:
            model = with_wide_inputs(onnx.load(str(self._path)))
            others = [each for each in model.graph.output if each.name != "logits"]
            for each in others:
                model.graph.output.remove(each)
            version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
            if version < OPSET:
                # The version converter does not convert the bodies of functions.
                model = inline_local_functions(model) if model.functions else model
                model = onnx.version_converter.convert_version(model, OPSET)
            onnx.save(model, str(folder / "model.onnx"))
        except Exception as error:  # exceptions of the C++ code share no base class but Exception
            raise ExportError(f"{self._path} cannot be rewritten: {first_line(error):.200}") from error
        return folder / "model.onnx"

    def _logits(self, arrays: Mapping[str, NDArray[np.int64]]) -> NDArray[Any]:
        """Run the file; an input that the passes have removed as unused gets zeros."""
        nothing = np.zeros_like(arrays["input_ids"])
        feeds = {name: arrays.get(name, nothing).astype(self._kinds[name]) for name in self._session.inputs}
        return self._session.run(["logits"], feeds)[0]

    def logprobs(self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]) -> NDArray[np.float32]:
        """Run the file."""
        logits = self._logits({name: arrays[name] for name in inputs})
        # log-softmax, with the maximum subtracted so that exp cannot overflow.
        shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
        result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return result

    def row_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Run the file and select the rows."""
        everywhere = self.logprobs(arrays, inputs)
        return everywhere.reshape(-1, everywhere.shape[-1])[rows]

    def exact_logprobs(
        self, arrays: Mapping[str, NDArray[np.int64]], inputs: Sequence[str]
    ) -> NDArray[np.float64] | None:
        """Run the file in fp64, with ONNX's reference implementation."""
        if self.precision != "fp32":
            return None
        nothing = np.zeros_like(arrays["input_ids"])
        try:
            if self._exact is None:
                self._exact = ReferenceEvaluator(in_fp64(onnx.load(str(self._path))))
            (logits,) = self._exact.run(["logits"], {name: arrays.get(name, nothing) for name in self._session.inputs})
        except Exception:  # the reference implementation lacks some operators and attributes
            logger.debug("%s cannot be run in fp64", self._path, exc_info=True)
            return None
        shifted = logits - logits.max(axis=-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return result

    def describe(self) -> dict[str, Any]:
        """Return name, revision, and the hash of the file."""
        name, revision = _named(self._folder)
        return {
            "model": name,
            "revision": revision,
            "weights_sha256": {self._path.name: hash_file(self._path).sha256},
            "config": self._config,
        }


def open_source(model: str, exporter: ExporterName | None = None) -> Checkpoint | OnnxFile:
    """Open a Hub id, the folder of a checkpoint, or an ONNX file; `exporter` applies to checkpoints only."""
    path = Path(model).expanduser()
    return OnnxFile(path) if path.suffix == ".onnx" and path.is_file() else Checkpoint(model, exporter)


def _named(folder: Path) -> tuple[str, str | None]:
    """Return name and revision, which the path gives if the folder is a snapshot in the Hub cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, None
