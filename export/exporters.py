"""Which exporter turns a checkpoint into an ONNX graph: the one that the installed transformers works with.

transformers below 4.58 exports through optimum-onnx, transformers from 5.13 on by itself. Between them there is none.
What the two do differently stays in their own modules, `optimum_exporter` and `transformers_exporter`.
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
    from transformers import PreTrainedModel

__all__ = ["EXPORTERS", "OPSET", "Exporter", "ExporterName", "choose_exporter", "refuse_inputs", "text_inputs"]

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
    """Writes the graph of a checkpoint.

    Attributes:
        name: How it is asked for.
    """

    name: ExporterName

    def export(self, model: "PreTrainedModel", folder: Path, tokenizer_inputs: Sequence[str]) -> Path:
        """Export a masked language model with its logits at every position, in the version `OPSET`.

        Args:
            model: The model, with eager attention, in fp32.
            folder: Where to write; it does not exist yet.
            tokenizer_inputs: `model_input_names` of its tokenizer.

        Returns:
            Path of the ONNX file.

        Raises:
            ModelError: The architecture cannot be exported, or text alone is not enough for it.
            ExportError: The export failed.
        """
        ...


def choose_exporter(wanted: ExporterName | None = None) -> Exporter:
    """Return an exporter that works here.

    Args:
        wanted: Its name; None takes the one that fits the installed transformers.

    Raises:
        DependencyError: What it needs is not installed, or not in a version that it works with.
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
    """Return the inputs that a graph should have: what the tokenizer gives and no more.

    To XLM token types are word embeddings, and zeros would add that of token 0 to every token.

    Args:
        taken: What the model can take.
        tokenizer_inputs: What its tokenizer gives.
    """
    given = {"input_ids", "attention_mask", *tokenizer_inputs}
    return [name for name in ENCODER_INPUTS if name in given and name in taken]


def refuse_inputs(architecture: str, strange: Sequence[str]) -> None:
    """Refuse a model that a text alone is not enough for.

    Raises:
        ModelError: There are such inputs.
    """
    if strange:
        raise ModelError(
            f"this {architecture} takes the inputs {', '.join(sorted(strange))}, which cannot be computed from "
            "text alone; it cannot be exported"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
