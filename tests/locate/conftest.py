"""Third-party models, a private cache, and an installation without [export]."""

import shutil
import sys
from pathlib import Path

import onnx
import pytest

from mlm_infer.locate.cache import CACHE_VARIABLE


@pytest.fixture(scope="session")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain exports in the layouts of Optimum and of transformers.js, the latter with an older opset."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from optimum.exporters.onnx import main_export

    folder = tmp_path_factory.mktemp("exports")
    for name in ("base", "roberta"):
        main_export(str(checkpoints[name]), folder / name, task="fill-mask", do_validation=False)
        quantize_dynamic(folder / name / "model.onnx", folder / name / "model_quantized.onnx")
    js = folder / "js"
    main_export(str(checkpoints["base"]), js, task="fill-mask", opset=14, do_validation=False)
    (js / "onnx").mkdir()
    onnx.save(convert_float_to_float16(onnx.load(js / "model.onnx")), js / "onnx/model_fp16.onnx")
    (js / "model.onnx").rename(js / "onnx/model.onnx")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra [export]."""
    monkeypatch.setitem(sys.modules, "onnx_ir", None)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A private cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the plain export of the real model that a test may damage."""
    return Path(shutil.copytree(exports["base"], tmp_path / "plain"))
