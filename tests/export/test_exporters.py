"""Which exporter is taken, what it says where there is none, and what the bundle says of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlm_infer.export import export_bundle
from mlm_infer.export.exporters import EXPORTERS, ExporterName, choose_exporter

from mlm_infer import DependencyError, ExportError, InputError, ModelError
from mlm_infer.bundle.read_manifest import read_manifest
from tests.helpers.architectures import IS_5

HERE: ExporterName
ELSEWHERE: ExporterName
HERE, ELSEWHERE = ("transformers", "optimum") if IS_5 else ("optimum", "transformers")
BOTH_WAYS = r"pip install 'mlm-infer\[optimum\]' .* or pip install 'mlm-infer\[export\]' 'transformers>=5\.13'"


def test_follows_from_what_is_installed(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Without a wish, and with the wish for what there is, it is the same one; the bundle names it and its versions."""
    assert {HERE, ELSEWHERE} == set(EXPORTERS)
    assert choose_exporter().name == choose_exporter(HERE).name == HERE
    export_bundle(str(tiny["distilbert"]), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.source["exporter"] == HERE
    assert ("onnxscript" if IS_5 else "optimum-onnx") in manifest.created_with


def test_the_other_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    """An exporter that does not work with this transformers is named with what it needs; so is a wrong name."""
    with pytest.raises(DependencyError, match=rf"^the exporter '{ELSEWHERE}' .* this is transformers .*{BOTH_WAYS}"):
        export_bundle(str(tiny["distilbert"]), tmp_path / "out", exporter=ELSEWHERE)
    with pytest.raises(InputError, match="exporter is 'torch'; it must be None or one of 'optimum', 'transformers'"):
        export_bundle(str(tiny["distilbert"]), tmp_path / "out", exporter="torch")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def run_export(tmp_path: Path, checkpoint: Path, start: str) -> tuple[int, list[str]]:
    """Export in a process that runs some code first; return the exit status and the lines but for the steps."""
    code = f"{start}\nfrom mlm_infer.export.cli import main\nmain([{str(checkpoint)!r}, {str(tmp_path / 'out')!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "packages")},
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("version", ["4.58.0", "5.0.0", "5.12.4"])
def test_versions_without_an_exporter(version: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Between 4.58 and 5.12 nobody exports: the error names both ways out."""
    metadata = tmp_path / "packages" / f"transformers-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    status, (line,) = run_export(tmp_path, tiny["distilbert"], "")
    assert status == 1
    assert f"error: transformers {version} has no exporter, and Optimum's does not work with it: pip install" in line
    assert "mlm-infer[optimum]" in line
    assert "transformers>=5.13" in line


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnx", "onnxscript" if IS_5 else "optimum"])
def test_half_of_what_it_needs(missing: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """One line that names the package that is missing and what to install."""
    status, (line,) = run_export(tmp_path, tiny["distilbert"], f"import sys; sys.modules[{missing!r}] = None")
    assert status == 1
    assert missing in line
    assert "pip install 'mlm-infer[" in line
    assert "[optimum" in line
    assert "[export" in line


@pytest.mark.skipif(not IS_5, reason="transformers 4.57 exports it, through Optimum")
def test_longformer(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The one that transformers' own exporter does not write: one line, and where it can be exported."""
    with pytest.raises(ExportError, match=r"longformer.*mlm-infer\[optimum\]"):
        export_bundle(str(tiny["longformer"]), tmp_path / "out")


def test_a_head_that_is_not_loaded(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Zeros in the place of the head, as transformers loads some that are tied in another way, are noticed."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(tiny["bert"])
    with torch.no_grad():
        model.cls.predictions.transform.LayerNorm.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model predicts the same for every text: .* \(transformers_version in its"):
        export_bundle(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
