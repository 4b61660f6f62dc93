"""Selects the exporter that the installed transformers works with.

Below 4.58 that is optimum-onnx, from 5.13 the exporter of transformers itself; in between there is none. The
differences between the two are confined to `optimum_exporter` and `transformers_exporter` (docs/stacks.md).
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from mlm_infer.bundle.interface import ENCODER_INPUTS
from mlm_infer.errors import DependencyError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "EXPORTERS",
    "OPSET",
    "Exporter",
    "ExporterName",
    "check_segments",
    "choose_exporter",
    "refuse_inputs",
    "text_inputs",
]

ExporterName = Literal["optimum", "transformers"]

EXPORTERS: tuple[ExporterName, ...] = get_args(ExporterName)

OPSET = 18
"""The version of ONNX that the graph passes are written for."""

_LAST_OF_OPTIMUM = (4, 57)
_FIRST_OF_ITS_OWN = (5, 13)
_ADVICE = (
    "pip install 'mlm-infer[optimum]' for Optimum with transformers below 4.58, or "
    "pip install 'mlm-infer[export]' 'transformers>=5.13' for the exporter of transformers itself"
)


class Exporter(Protocol):
    """Writes the ONNX graph of a checkpoint.

    Attributes:
        name: Its name in `--exporter` and in the manifest.
    """

    name: ExporterName

    def export(self, model: "PreTrainedModel", folder: Path, tokenizer_inputs: Sequence[str]) -> Path:
        """Export a masked language model with logits at every position, in ONNX opset `OPSET`.

        Args:
            model: The model, with eager attention, in fp32.
            folder: Folder to create.
            tokenizer_inputs: `model_input_names` of its tokenizer.

        Returns:
            Path of the ONNX file.

        Raises:
            ModelError: The architecture cannot be exported, or has inputs other than text.
            ExportError: The export failed.
        """
        ...


def choose_exporter(wanted: ExporterName | None = None) -> Exporter:
    """Return the exporter for the installed transformers.

    Args:
        wanted: The expected exporter; None accepts either.

    Raises:
        DependencyError: There is no exporter for this version of transformers, it is not the expected one, or its
            package is not installed.
    """
    version = importlib.metadata.version("transformers")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    fits: ExporterName | None = None
    if numbers <= _LAST_OF_OPTIMUM:
        fits = "optimum"
    elif numbers >= _FIRST_OF_ITS_OWN:
        fits = "transformers"
    if fits is None:
        raise DependencyError(f"transformers {version} has no exporter, and Optimum's does not work with it: {_ADVICE}")
    if wanted not in (None, fits):
        why = "works with transformers below 4.58" if wanted == "optimum" else "came with transformers 5.13"
        raise DependencyError(f"the exporter {wanted!r} {why}, and this is transformers {version}: {_ADVICE}")
    package, module = ("optimum-onnx", "optimum.exporters.onnx") if fits == "optimum" else ("onnxscript", "onnxscript")
    if not _installed(module):
        raise DependencyError(f"exporting with transformers {version} needs {package}: {_ADVICE}")
    if fits == "optimum":
        from .optimum_exporter import Optimum

        return Optimum()
    from .transformers_exporter import Transformers

    return Transformers()


def text_inputs(taken: Sequence[str], tokenizer_inputs: Sequence[str]) -> list[str]:
    """Return the inputs of the graph: the tokenizer's outputs that the model accepts.

    A model may accept more: XLM treats token types as word embeddings, so that zeros would add the embedding of token 0
    to every token.

    Args:
        taken: Parameters of the model's `forward`.
        tokenizer_inputs: `model_input_names` of its tokenizer.
    """
    given = {"input_ids", "attention_mask", *tokenizer_inputs}
    return [name for name in ENCODER_INPUTS if name in given and name in taken]


def refuse_inputs(architecture: str, strange: Sequence[str]) -> None:
    """Reject a model with inputs other than text.

    Args:
        architecture: `model_type` of its configuration.
        strange: Names of these inputs.

    Raises:
        ModelError: There are any.
    """
    if strange:
        raise ModelError(
            f"this {architecture} takes the inputs {', '.join(sorted(strange))}, which cannot be computed from "
            "text alone; it cannot be exported"
        )


def check_segments(config: "PretrainedConfig") -> None:
    """Reject a Nystromformer whose landmarks are means over segments of texts of exactly one length.

    Args:
        config: The configuration of any model.

    Raises:
        ModelError: It is such a model.
    """
    length, landmarks = (getattr(config, name, None) for name in ("segment_means_seq_len", "num_landmarks"))
    if length != landmarks:
        raise ModelError(
            f"this {config.model_type} takes texts of exactly {length} tokens, segment_means_seq_len in its "
            f"config.json, since its num_landmarks is {landmarks}; only one where the two are equal, which takes "
            "texts of any length, can be exported"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
