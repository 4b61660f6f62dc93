"""Writes third-party ONNX exports: a tiny model in each form that the common exporters produce.

    python tools/graph_corpus.py bert dynamo OUT     # one file, with its configuration and tokenizer
    python tools/graph_corpus.py --list

Each form takes a checkpoint of `tiny_models` and writes `model.onnx`, `config.json` and the tokenizer to a folder, in
which `mlm-export FOLDER/model.onnx OUT` and `MaskFiller(FOLDER)` find them.
"""

import importlib.util
import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from mlm_infer.export.tokenizer import plain_tokenizer
from tiny_models import BUILDERS
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

__all__ = ["EXPORTERS", "FORMS", "as_transformers_js", "write_file"]

_LENGTH = 13
"""Length of the traced texts: odd and different from all dimensions of the models, so that it cannot be confused."""

Exporter = Callable[..., None]


def _sample(checkpoint: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tokenizer's output for two texts of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(tokenizer), (2, _LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    ids[1, -4:] = tokenizer.pad_token_id
    whole = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    taken = inspect.signature(model.forward).parameters
    names = dict.fromkeys(("input_ids", "attention_mask", *tokenizer.model_input_names))
    return {name: whole[name] for name in names if name in whole and name in taken}


class _Logits(torch.nn.Module):
    """A model that takes its inputs by position and returns its logits only, as PyTorch's tracer requires."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self._model, self._names = model, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        found: torch.Tensor = self._model(**dict(zip(self._names, values, strict=True))).logits
        return found


def _dynamo(checkpoint: Path, file: Path, *, attention: str | None = None, **options: Any) -> None:
    """torch.onnx.export with `dynamo=True`, the default of current PyTorch."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, attn_implementation=attention).eval()
    sample = _sample(checkpoint, model)
    # Passed by name, the inputs keep the names that the model gives them.
    torch.onnx.export(
        model,
        (),
        file,
        kwargs=sample,
        input_names=list(sample),
        output_names=["logits"],
        dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in sample},
        dynamo=True,
        **options,
    )


def _traced(checkpoint: Path, file: Path, *, attention: str | None = "eager", opset: int = 17) -> None:
    """torch.onnx.export with `dynamo=False`, the tracer, which was the default of older PyTorch."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, attn_implementation=attention).eval()
    sample = _sample(checkpoint, model)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*sample, "logits")}
    torch.onnx.export(
        _Logits(model, list(sample)),
        tuple(sample.values()),
        str(file),
        input_names=list(sample),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=opset,
        dynamo=False,
    )


def _transformers(checkpoint: Path, file: Path, *, attention: str | None = None, **options: Any) -> None:
    """The exporter of transformers 5."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModelForMaskedLM.from_pretrained(checkpoint, attn_implementation=attention).eval()
    exported = OnnxExporter().export(model, _sample(checkpoint, model), config=OnnxConfig(dynamic=True, **options))
    exported.save_pretrained(file.parent)


def _optimum(checkpoint: Path, file: Path, **options: Any) -> None:
    """Optimum, for transformers before 5."""
    from optimum.exporters.onnx import main_export

    main_export(str(checkpoint), file.parent, task="fill-mask", do_validation=False, **options)


EXPORTERS: dict[str, Exporter] = {}
"""The exporters that are installed, by name; each writes the ONNX file of a checkpoint."""

EXPORTERS["traced"] = _traced
if importlib.util.find_spec("onnxscript") is not None:
    EXPORTERS["dynamo"] = _dynamo
if importlib.util.find_spec("transformers.exporters") is not None:
    EXPORTERS["transformers"] = _transformers
if importlib.util.find_spec("optimum") is not None:
    EXPORTERS["optimum"] = _optimum

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamo": ("dynamo", {}),
    "dynamo-eager": ("dynamo", {"attention": "eager"}),
    "dynamo-18": ("dynamo", {"opset_version": 18, "external_data": False}),
    "dynamo-21": ("dynamo", {"opset_version": 21}),
    "dynamo-23": ("dynamo", {"opset_version": 23}),
    "dynamo-functions": ("dynamo", {"optimize": False}),
    "traced": ("traced", {}),
    "traced-sdpa": ("traced", {"attention": "sdpa"}),
    "traced-14": ("traced", {"opset": 14}),
    "transformers": ("transformers", {}),
    "transformers-eager": ("transformers", {"attention": "eager"}),
    "transformers-fused": ("transformers", {"ort_fusions": "cpu"}),
    "optimum": ("optimum", {}),
}
"""By name: an exporter, and its options."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log messages and warnings of the exporters."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_file(checkpoint: Path, form: str, folder: Path) -> Path:
    """Export a checkpoint in one of `FORMS`.

    Args:
        checkpoint: A folder that a builder of `tiny_models` wrote.
        form: Its name.
        folder: The folder to write to.

    Returns:
        The ONNX file.
    """
    exporter, options = FORMS[form]
    folder.mkdir(parents=True)
    file = folder / "model.onnx"
    with _quiet():
        EXPORTERS[exporter](checkpoint, file, **options)
        _settings(checkpoint, folder)
    return file


def _settings(checkpoint: Path, folder: Path) -> None:
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder)
    if not (folder / "tokenizer.json").exists():
        plain_tokenizer(AutoTokenizer.from_pretrained(checkpoint)).save(str(folder / "tokenizer.json"))


def as_transformers_js(file: Path, folder: Path) -> Path:
    """Copy an export in the layout of transformers.js: graphs in the sub-folder `onnx`, an int8 one among them.

    Args:
        file: What `write_file` returned.
        folder: The folder of the copy.

    Returns:
        The file `onnx/model.onnx`.
    """
    from onnxruntime.quantization import quantize_dynamic

    (folder / "onnx").mkdir(parents=True)
    for path in file.parent.iterdir():
        if path.name != "export.json":
            shutil.copy(path, folder / "onnx" if path.name.startswith(file.name) else folder)
    quantize_dynamic(file, folder / "onnx/model_quantized.onnx")
    return folder / "onnx" / file.name


@click.command()
@click.argument("architecture", required=False)
@click.argument("form", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--list", "listed", is_flag=True, help="List the architectures and forms.")
def _main(architecture: str | None, form: str | None, folder: Path | None, *, listed: bool) -> None:
    """Write the ONNX file of a tiny ARCHITECTURE in a FORM into FOLDER."""
    if listed or architecture is None or form is None or folder is None:
        click.echo(f"architectures: {', '.join(BUILDERS)}")
        click.echo(f"forms: {', '.join(name for name, (each, _) in FORMS.items() if each in EXPORTERS)}")
        return
    checkpoint = BUILDERS[architecture](folder / "checkpoint")
    click.echo(write_file(checkpoint, form, folder / "onnx"))


if __name__ == "__main__":
    _main()
