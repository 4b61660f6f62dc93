"""onnxruntime-gpu on a machine without a GPU, in its own environment: `make gpu-wheel`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import false_driver, has_driver, install, make_environment

from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.gpu_wheel, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with `mlm-infer[gpu]`."""
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    return make_environment(tmp_path_factory.mktemp("gpu-wheel") / "environment", f"{ROOT}[gpu]")


def fill(
    python: Path, bundle: Path, device: str, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Fill a mask on a device with the command."""
    command = [
        str(python.with_name("mlm-fill")),
        "--model",
        str(bundle),
        "A [MASK] film.",
        "--device",
        device,
        "--json",
    ]
    environment = os.environ | (more or {})
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)


def test_no_driver(python: Path, bundles: dict[str, Path]) -> None:
    """`auto` runs on the CPU with a one-line warning; `cuda` gives a one-line error and status 1."""
    done = fill(python, bundles["bert"], "auto")
    assert done.returncode == 0
    assert done.stdout.startswith('{"text"')
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("WARNING: ONNX Runtime cannot start CUDA on 'cuda:0' (there is no NVIDIA driver")
    assert done.stderr.endswith("filling masks on the CPU\n")
    done = fill(python, bundles["bert"], "cuda")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: ONNX Runtime cannot start CUDA")


def test_the_shipped_model_needs_no_gpu(python: Path) -> None:
    """For a bundle with int8 only, CUDA is not tried, so there is no warning."""
    command = [str(python.with_name("mlm-fill")), "A [MASK] film.", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_libraries(python: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """A driver without CUDA's libraries; any library can stand in for the driver, which is never called."""
    found = false_driver(tmp_path)
    done = fill(python, bundles["bert"], "cuda", found)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: ONNX Runtime cannot start CUDA on 'cuda:0' (its CUDA or cuDNN libraries are missing" in done.stderr
    done = fill(python, bundles["bert"], "auto", found)
    assert done.returncode == 0
    assert done.stdout.startswith('{"text"')


def test_both_wheels(python: Path, bundles: dict[str, Path]) -> None:
    """The wheel installed last is active; the error says that both are installed, and what to do."""
    install(python, "onnxruntime")
    done = fill(python, bundles["bert"], "cuda")
    assert done.returncode == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in done.stderr
    assert "pip install 'mlm-infer[gpu]'" in done.stderr
    assert fill(python, bundles["bert"], "auto").returncode == 0


def test_device_table() -> None:
    """docs/devices.md matches the output of its command."""
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver, and would print another table")
    command = [sys.executable, str(ROOT / "tools/devices.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs/devices.md").read_text(encoding="utf-8")
