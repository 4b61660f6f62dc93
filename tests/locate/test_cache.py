"""The cache of exports on first use: ownership, and entries that are damaged or outdated."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from mlm_infer import BundleError, MaskFiller
from mlm_infer.locate.cache import CACHE_VARIABLE

LONGER = "A good [MASK] film."


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no owner there")
def test_a_cache_that_others_can_write_to(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A folder or entry that another user owns, or that everybody can write to, is rejected."""
    cache = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache))
        entry = MaskFiller(tiny["bert"]).info.path
        assert [stat.S_IMODE(each.stat().st_mode) for each in (cache, entry)] == [0o700, 0o700]
        for folder in (cache, entry):
            folder.chmod(0o777)
            with pytest.raises(BundleError, match=rf"^{folder} .* \(chmod 700\), or set {CACHE_VARIABLE}"):
                MaskFiller(tiny["bert"])
            folder.chmod(0o700)
            if os.geteuid() == 0:
                os.chown(folder, 1, 1)
                with pytest.raises(BundleError, match=rf"^{folder} belongs to another user"):
                    MaskFiller(tiny["bert"])
                os.chown(folder, 0, 0)
        assert MaskFiller(tiny["bert"]).info.path == entry


def test_a_damaged_entry_of_the_cache_is_made_again(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Also if the damaged file has the right size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        filler = MaskFiller(tiny["bert"])
        path = filler.info.path / "model.fp32.weights"
        right = path.read_bytes()
        path.unlink()  # the one that is mapped stays as it is
        path.write_bytes(bytes(len(right)))
        assert MaskFiller(tiny["bert"]).fill(LONGER) == filler.fill(LONGER)
        assert path.read_bytes() == right


@pytest.mark.slow
def test_other_weights_are_another_entry(tiny: dict[str, Path], tmp_path: Path) -> None:
    """For every weight file that transformers may load, including those that an index or the settings name."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny["bert"], tmp_path / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    other = {name: value.flip(0) if "word_embeddings" in name else value for name, value in weights.items()}
    assert any(not torch.equal(other[name], weights[name]) for name in weights)
    save_file({"unused": torch.zeros(1)}, folder / "extra.safetensors")

    def plain(values: dict[str, torch.Tensor]) -> None:
        torch.save(values, folder / "pytorch_model.bin")

    def sharded(values: dict[str, torch.Tensor]) -> None:
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        (folder / "part").mkdir(exist_ok=True)
        torch.save(values, folder / "part/one.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(values, "part/one.bin")}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        for write in (plain, sharded):
            answers = []
            for values in (weights, other):
                write(values)
                answers.append(MaskFiller(folder).fill(LONGER))
            assert answers[0] != answers[1]
