"""Prepares a model for every engine, and a separate environment for engines with conflicting dependencies."""

import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

from mlm_infer.errors import ExportError

from .shapes import SHAPES, make_checkpoint

__all__ = ["OPENVINO", "Prepared", "prepare"]

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


@dataclass(frozen=True, slots=True)
class Prepared:
    """The models of a comparison.

    Attributes:
        paths: Paths and device for the worker.
        pythons: The interpreter of each engine.
        left_out: Engines whose own tools cannot convert the model, and why.
    """

    paths: dict[str, str]
    pythons: dict[str, Path]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def weights_mb(self) -> float:
        """Size of the fp32 weights."""
        return sum(file.stat().st_size for file in Path(self.paths["checkpoint"]).glob("*.safetensors")) / 1e6


def prepare(model: str, work: Path, engines: list[str], device: str) -> Prepared:
    """Create the models that the engines need.

    Args:
        model: A name of `benchmarks.shapes.SHAPES`, or the folder of a trained checkpoint.
        work: Where models and environments are kept from run to run.
        engines: Names of `benchmarks.worker.ENGINES`.
        device: `cpu` or `cuda`.
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
        command += [*formats, *precisions, *budget]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:  # noqa: S603
            raise ExportError(f"{model} cannot be measured: mlm-export fails, and the line above says why")
    pythons = {engine: Path(sys.executable) for engine in engines}
    left_out: dict[str, str] = {}
    for prefix, code in (("optimum", _QUANTIZE), ("OpenVINO", _OPENVINO)):
        peers = [engine for engine in engines if engine.startswith(prefix)]
        plain, small = paths[prefix.lower()], paths[f"{prefix.lower()}_int8"]
        if peers and prefix == "OpenVINO":
            pythons |= dict.fromkeys(peers, openvino_python(work))
        if peers and not small.exists():
            why = _convert(pythons[peers[0]], code, [paths["checkpoint"], plain, small])
            left_out |= dict.fromkeys(peers, f"its tools cannot convert this model: {why}") if why else {}
    texts = {name: str(path) for name, path in paths.items()} | {"device": device}
    return Prepared(texts, {name: python for name, python in pythons.items() if name not in left_out}, left_out)


def _convert(python: Path, code: str, arguments: list[Path]) -> str | None:
    """Convert a model with the tools of another engine; return why they cannot."""
    command: list[str | Path] = [python, "-c", code, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    return None if done.returncode == 0 else (last[0].strip() if last else f"status {done.returncode}")
