"""Missing, incomplete, damaged or outdated bundles are rejected with a one-line error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_infer import BundleError, DeviceError, InputError, MaskFiller


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundles["bert"], tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest."""
    path = bundle / "mlm_infer.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_missing_folder(tmp_path: Path) -> None:
    """The message says how to write a bundle."""
    with pytest.raises(BundleError, match=r"no folder .*mlm-export"):
        MaskFiller(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    """A folder without a manifest, or with the settings of a checkpoint only."""
    with pytest.raises(BundleError, match=r"contains no mlm_infer\.json"):
        MaskFiller(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=f"mlm-export {tmp_path} OUT"):
        MaskFiller(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.int8.onnx", "model.int8.weights"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_file(bundle: Path, name: str, damage: str) -> None:
    """The message names the damaged file."""
    path = bundle / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data[:-10] if damage == "truncated" else data)
    with pytest.raises(BundleError, match=name):
        MaskFiller(bundle)


def test_half_written_manifest(bundle: Path) -> None:
    """A truncated manifest is invalid JSON."""
    path = bundle / "mlm_infer.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(BundleError, match="not JSON"):
        MaskFiller(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("mask_id"), "mask_id"),
        (lambda values: values.update(schema=99), "upgrade"),
        (lambda values: values.pop("schema"), "schema"),
        (lambda values: values["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "own folder"),
        (lambda values: values["models"].update(int8={"name": "x"}), r"models\.int8\.file is None"),
    ],
)
def test_wrong_manifest(bundle: Path, change: Callable[[dict[str, object]], object], message: str) -> None:
    """Missing fields, a newer schema, and files outside the folder."""
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        MaskFiller(bundle)


def test_precision_and_device(bundle: Path) -> None:
    """A precision that the bundle lacks, and a device that the machine lacks."""
    edit(bundle, lambda values: values["models"].pop("int8"))  # type: ignore[attr-defined]
    edit(bundle, lambda values: values["known_answers"].pop("int8"))  # type: ignore[attr-defined]
    assert MaskFiller(bundle).info.precision == "fp32"
    with pytest.raises(InputError, match="holds fp32"):
        MaskFiller(bundle, precision="int8")
    with pytest.raises(InputError, match="device is 'tpu'"):
        MaskFiller(bundle, device="tpu")
    with pytest.raises(InputError, match="threads is 0"):
        MaskFiller(bundle, threads=0)


@pytest.mark.parametrize("cpu", ["avx2", "avx512", "avx512_vnni", "arm64"])
def test_8_bits_of_an_older_version(
    cpu: str, bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where old int8 files overflow, fp32 is selected with one message; int8 alone runs with a warning."""
    monkeypatch.setenv("MLM_INFER_CPU", cpu)
    filler = MaskFiller(bundle, device="cpu")
    assert (filler.info.precision, filler.info.cpu, caplog.messages) == ("int8", cpu, [])
    edit(bundle, lambda values: values["models"]["int8"].update(cpu="avx512_vnni"))  # type: ignore[index]
    overflows = cpu.startswith("avx") and cpu != "avx512_vnni"
    assert MaskFiller(bundle, device="cpu").info.precision == ("fp32" if overflows else "int8")
    assert [f"overflows on this processor ({cpu}); taking fp32" in each for each in caplog.messages] == [
        True
    ] * overflows
    caplog.clear()
    assert MaskFiller(bundle, device="cpu", precision="int8").info.precision == "int8"
    assert ["its answers are wrong: export it again" in each for each in caplog.messages] == [True] * overflows


def test_a_processor_that_there_is_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains the variable's value and the valid ones."""
    monkeypatch.setenv("MLM_INFER_CPU", "sparc")
    with pytest.raises(
        InputError, match="MLM_INFER_CPU is 'sparc'; it must be one of avx2, avx512, avx512_vnni, arm64"
    ):
        MaskFiller(bundle, device="cpu")


def test_a_newer_runtime_made_it(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bundle made with a newer runtime opens with a warning that names both versions."""
    edit(bundle, lambda values: values["created_with"].update(onnxruntime="99.1.0"))  # type: ignore[attr-defined]
    MaskFiller(bundle, device="cpu").fill("A [MASK] film.")
    (record,) = caplog.records
    assert "onnxruntime 99.1.0" in record.message
    assert "self_test=True" in record.message


def test_cuda_that_is_not_there_is_an_error(bundle: Path) -> None:
    """CUDA never falls back to the CPU silently."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DeviceError, match="pip install 'mlm-infer"):
        MaskFiller(bundle, device="cuda")
