"""Checkpoints that are exported to the cache on first use."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mlm_infer import DependencyError, InputError, MaskFiller
from mlm_infer.errors import ExportError
from tests.helpers.architectures import IS_5
from tests.helpers.pipeline import assert_same, masked_sentences

LINE = "A [MASK] film."


def test_checkpoint_is_exported_on_first_use(
    base: Path, cache: Path, offline_pipeline: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cached by content: the same weights in another folder share the entry, other weights do not."""
    filler = MaskFiller(base)
    assert "comparing with PyTorch ..." in capfd.readouterr().err
    assert filler.info.path.parent == cache
    assert filler.info.source == base.name
    texts = masked_sentences("[MASK]", 40, seed=4)
    assert_same(filler(texts), offline_pipeline(base)(texts))
    entries = sorted(each for each in cache.iterdir() if each.is_dir())
    moved = cache.parent / base.name
    shutil.copytree(base, moved)
    assert MaskFiller(moved).info.path == filler.info.path
    assert entries == sorted(each for each in cache.iterdir() if each.is_dir())
    weights = filler.info.path / "model.fp32.weights"
    weights.unlink()  # the one that is mapped stays as it is
    weights.write_bytes(b"half")
    capfd.readouterr()
    assert MaskFiller(base).fill(LINE) == filler.fill(LINE)
    assert "comparing with PyTorch ..." in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_export_once(base: Path, cache: Path) -> None:
    """The second process waits for the first and uses its bundle."""
    code = f"from mlm_infer import MaskFiller; MaskFiller({str(base)!r}).fill({LINE!r})"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=300)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    exporter = "transformers" if IS_5 else "optimum"
    assert sorted(f"exporting with {exporter} ..." in each for each in said) == [False, True]
    assert any("waiting for it" in each for each in said)
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1


@pytest.mark.usefixtures("alone")
def test_checkpoint_without_export(base: Path) -> None:
    """The error says what to install and what to run."""
    with pytest.raises(DependencyError, match=rf"pip install 'mlm-infer\[export\]'.*mlm-export {base} OUT"):
        MaskFiller(base)


def test_checkpoint_that_cannot_be_exported(base: Path, cache: Path, tmp_path: Path) -> None:
    """The error contains the reason of the export, and nothing is left in the cache."""
    from transformers import AutoModel

    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "headless")
    with pytest.raises(ExportError, match=r"cannot export .*headless: .* lacks . weights"):
        MaskFiller(tmp_path / "headless")
    assert not [each for each in cache.iterdir() if each.is_dir()]
    with pytest.raises(InputError, match="precision is 'int4'"):
        MaskFiller(base, precision="int4")


def test_code_of_a_checkpoint_is_not_run(base: Path, tmp_path: Path) -> None:
    """A checkpoint with its own Python code is rejected, on first use and by mlm-export."""
    folder = Path(shutil.copytree(base, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"auto_map": {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config | own), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ExportError, match="custom code"):
        MaskFiller(folder)
    assert not (tmp_path / "ran").exists()
