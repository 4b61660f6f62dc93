"""Prepares a model for every engine, and a separate environment for engines with conflicting dependencies."""

import subprocess
import sys
import venv
from pathlib import Path

from .shapes import SHAPES, make_checkpoint

__all__ = ["OPENVINO", "prepare"]

# Pinned, and in an environment of its own: optimum-intel requires other versions of transformers than this package.
OPENVINO = ("torch==2.13.0", "optimum-intel==2.2.0", "openvino==2026.4.1", "nncf==3.4.0")
_QUANTIZE = """
import sys
from optimum.onnxruntime import ORTModelForMaskedLM, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
source, plain, small = sys.argv[1:]
ORTModelForMaskedLM.from_pretrained(source, export=True).save_pretrained(plain)
config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
ORTQuantizer.from_pretrained(plain).quantize(save_dir=small, quantization_config=config)
"""
_OPENVINO = """
import sys
from optimum.intel import OVModelForMaskedLM, OVWeightQuantizationConfig
source, plain, small = sys.argv[1:]
OVModelForMaskedLM.from_pretrained(source, export=True, load_in_8bit=False, compile=False).save_pretrained(plain)
options = {"quantization_config": OVWeightQuantizationConfig(bits=8), "compile": False}
OVModelForMaskedLM.from_pretrained(source, export=True, **options).save_pretrained(small)
"""


def openvino_python(work: Path) -> Path:
    """Return the interpreter of an environment with OpenVINO, which is created on first use."""
    folder = work / "openvino-environment"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *OPENVINO], check=True)  # noqa: S603
        # optimum-intel installs a torchvision that does not match torch, and transformers imports it if it is there.
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)  # noqa: S603
        # Marks the environment as complete; without it, an interrupted installation is started again.
        (folder / "ready").touch()
    return python


def prepare(model: str, work: Path, engines: list[str], device: str) -> tuple[dict[str, str], dict[str, Path]]:
    """Create the models that the engines need.

    Args:
        model: A name of `benchmarks.shapes.SHAPES`, or the folder of a trained checkpoint.
        work: Where models and environments are kept from run to run.
        engines: Names of `benchmarks.worker.ENGINES`.
        device: `cpu` or `cuda`.

    Returns:
        Paths and device for the worker, and the interpreter of each engine.
    """
    from mlm_infer.bundle.manifest import TORCHSCRIPT
    from mlm_infer.bundle.read_manifest import read_manifest

    models = work / Path(model).name
    names = ("checkpoint", "bundle", "optimum", "optimum_int8", "openvino", "openvino_int8")
    paths = {name: models / name for name in names}
    if device == "cuda":
        paths["bundle"] = models / "bundle_cuda"
    if model in SHAPES:
        make_checkpoint(model, paths["checkpoint"])
        # Random weights have no meaningful answers, so the accuracy budget is disabled.
        budget = ["--max-perplexity-increase", "1e9", "--min-agreement", "0"]
    else:
        paths["checkpoint"] = Path(model)
        budget = []
    # A bundle of an earlier run may lack TorchScript, which was added to the comparison later.
    if not paths["bundle"].exists() or TORCHSCRIPT not in read_manifest(paths["bundle"]).models:
        formats = ["--format", "onnx", "--format", "torchscript"]
        precisions = ["--precision", "fp32", "--precision", "int8" if device == "cpu" else "fp16"]
        command = [sys.executable, "-m", "mlm_infer.export", str(paths["checkpoint"]), str(paths["bundle"]), "--force"]
        subprocess.run([*command, *formats, *precisions, *budget], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    arguments = [str(paths["checkpoint"])]
    if any(engine.startswith("optimum") for engine in engines) and not paths["optimum_int8"].exists():
        _run(Path(sys.executable), _QUANTIZE, [*arguments, str(paths["optimum"]), str(paths["optimum_int8"])])
    pythons = {engine: Path(sys.executable) for engine in engines}
    vino = [engine for engine in engines if engine.startswith("OpenVINO")]
    if vino:
        python = openvino_python(work)
        pythons |= dict.fromkeys(vino, python)
        if not paths["openvino_int8"].exists():
            _run(python, _OPENVINO, [*arguments, str(paths["openvino"]), str(paths["openvino_int8"])])
    return {name: str(path) for name, path in paths.items()} | {"device": device}, pythons


def _run(python: Path, code: str, arguments: list[str]) -> None:
    subprocess.run([python, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
