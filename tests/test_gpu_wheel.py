"""onnxruntime-gpu where there is no GPU, in an environment of its own: `make gpu-wheel`."""

import ctypes
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.gpu_wheel, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with `mlm-infer[gpu]`."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    folder = tmp_path_factory.mktemp("gpu-wheel")
    venv.create(folder, with_pip=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    pip(folder / "bin/python", "install", f"{ROOT}[gpu]")
    return folder / "bin/python"


def pip(python: Path, *arguments: str) -> None:
    """Run pip in the environment."""
    subprocess.run([str(python), "-m", "pip", "-q", *arguments], check=True, cwd="/")


def fill(python: Path, bundle: Path, device: str, libraries: Path | None = None) -> subprocess.CompletedProcess[str]:
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
    environment = os.environ | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)


def test_no_driver(python: Path, bundles: dict[str, Path]) -> None:
    """`auto` is the CPU and one line; `cuda` is one line and status 1."""
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
    """int8 alone: nothing to try on CUDA, so nothing to say."""
    command = [str(python.with_name("mlm-fill")), "A [MASK] film.", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_libraries(python: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """A driver without CUDA's libraries; any library will do for the driver, since nothing gets as far as to ask it."""
    shutil.copy(next(Path("/").glob("lib*/**/libm.so.6")), tmp_path / "libcuda.so.1")
    done = fill(python, bundles["bert"], "cuda", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: ONNX Runtime cannot start CUDA on 'cuda:0' (its CUDA or cuDNN libraries are missing" in done.stderr
    done = fill(python, bundles["bert"], "auto", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith('{"text"')


def test_both_wheels(python: Path, bundles: dict[str, Path]) -> None:
    """The last one installed wins; the error says that both are there and what to do."""
    pip(python, "install", "onnxruntime")
    done = fill(python, bundles["bert"], "cuda")
    assert done.returncode == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in done.stderr
    assert "pip install 'mlm-infer[gpu]'" in done.stderr
    assert fill(python, bundles["bert"], "auto").returncode == 0
