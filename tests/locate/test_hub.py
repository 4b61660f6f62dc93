"""Models from the Hub: which files are downloaded, and the errors if they cannot be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlm_infer import MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.locate.cache import CACHE_VARIABLE
from tests.helpers.hub_server import serve_hub
from tests.helpers.paths import SHIPPED

LINE = "A [MASK] film."


def ask(
    model: str, home: Path, hub: str, *, alone: bool = False, offline: str = "", **options: object
) -> tuple[dict[str, Any], str]:
    """Fill a mask in a process with its own Hub cache; return its report and stderr."""
    code = (
        f"import sys\nif {alone}: sys.modules['onnx_ir'] = None\n"
        "import json\nfrom mlm_infer import MaskFiller\nfrom mlm_infer.errors import MlmInferError\n"
        "try:\n"
        f"    filler = MaskFiller({model!r}, **{options!r})\n"
        f"    word = filler.fill({LINE!r}).masks[0].predictions[0].text\n"
        "    found = dict(path=str(filler.info.path), source=filler.info.source, word=word)\n"
        "except MlmInferError as error:\n"
        "    found = dict(error=str(error), kind=type(error).__name__)\n"
        "json.dump(found, sys.stdout)"
    )
    cache = str(home / "mlm-infer")
    own = {"HF_HOME": str(home), "HF_ENDPOINT": hub, CACHE_VARIABLE: cache, "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | own, capture_output=True, text=True, check=False, cwd=home.parent
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_bundle_and_plain_export_from_the_hub(exports: dict[str, Path], tmp_path: Path) -> None:
    """Only the required files are downloaded, once; then the model opens offline."""
    home = tmp_path / "home"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.md").write_text("Soon.", encoding="utf-8")
    repositories = {"team/bundle": SHIPPED, "team/plain": exports["base"], "team/js": exports["js"]}
    repositories["team/empty"] = tmp_path / "empty"
    with serve_hub(repositories) as (hub, downloads):
        bundle, _ = ask("team/bundle", home, hub)
        assert bundle["word"] == MaskFiller().fill(LINE).masks[0].predictions[0].text
        assert "models--team--bundle" in bundle["path"]
        downloads.clear()
        again, _ = ask("team/bundle", home, hub)
        assert again == bundle
        assert not downloads
        plain, said = ask("team/plain", home, hub)
        assert "model.onnx" in downloads
        assert "model_quantized.onnx" not in downloads
        assert "building the serving graph ..." in said
        assert plain["source"] == "team/plain"
        downloads.clear()
        ask("team/js", home, hub, alone=True, precision="fp16")
        assert "onnx/model_fp16.onnx" in downloads
        assert "onnx/model.onnx" not in downloads
        assert ask("team/plain", home, hub, revision="main")[0] == plain
        assert "no revision 'v9'" in ask("team/bundle", home, hub, revision="v9")[0]["error"]
        found, _ = ask("team/none", home, hub)
        assert found["kind"] == "BundleError"
        assert "the Hub has no such model" in found["error"]
        assert "team/empty on the Hub holds no bundle" in ask("team/empty", home, hub)[0]["error"]
    with serve_hub(repositories, gated=frozenset(["team/bundle"])) as (hub, _):
        assert "accept its terms" in ask("team/bundle", tmp_path / "other", hub)[0]["error"]
    # The address of a server that is gone.
    found, said = ask("team/bundle", home, hub)
    assert found == bundle
    assert "the Hub cannot be reached" in said
    for offline, only, reason in (("", True, "local_files_only is set"), ("1", False, "HF_HUB_OFFLINE is set")):
        found, said = ask("team/plain", home, hub, offline=offline, local_files_only=only)
        assert (found, said) == (plain, "")
        found, _ = ask("team/none", home, hub, offline=offline, local_files_only=only)
        assert f"no copy of such a model from the Hub on this machine ({reason})" in found["error"]


@pytest.mark.slow
def test_checkpoint_from_the_hub(base: Path, tmp_path: Path) -> None:
    """Only the required files are downloaded; the exported bundle has the model's Hub name."""
    folder = tmp_path / "repository"
    shutil.copytree(base, folder)
    (folder / "rust_model.ot").write_bytes(b"another framework's")
    with serve_hub({"team/checkpoint": folder}) as (hub, downloads):
        found, said = ask("team/checkpoint", tmp_path / "home", hub)
        assert found["source"] == "team/checkpoint"
        assert Path(found["path"]).name.startswith("team--checkpoint-")
        assert "comparing with PyTorch ..." in said
        assert "rust_model.ot" not in downloads
    assert read_manifest(Path(found["path"])).source["revision"] == "0123456789abcdef0123456789abcdef01234567"
    again, said = ask("team/checkpoint", tmp_path / "home", hub, local_files_only=True)
    assert (again, said) == (found, "")
