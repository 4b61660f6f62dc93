"""Models for the tests: a real small checkpoint, and tiny ones of every architecture, built in code."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlm_infer import MaskFiller
from tests.helpers.paths import ROOT

# A shell's background job ignores Ctrl-C, and so would the processes to which tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Any word that names no folder may be a model of the Hub; helpers/hub_server.py stands in for it where it is wanted.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nothing that an earlier version computed, and nothing left in the user's cache; read when `datasets` is imported.
_datasets_cache = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep exports on first use out of the user's cache."""
    os.environ["MLM_INFER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real BERT checkpoint, 2 layers and 128 wide."""
    from sources import base_checkpoint

    return base_checkpoint(ROOT / ".work" / "base")


class Folders(dict[str, Path]):
    """Folders by name, each made on first access and then shared."""

    def __init__(self, make: Callable[[str], Path]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Path:
        self[name] = self._make(name)
        return self[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random checkpoints by architecture, with tokenizers trained on the built-in reviews."""
    from tiny_models import BUILDERS

    folder = tmp_path_factory.mktemp("tiny")
    return Folders(lambda name: BUILDERS[name](folder / name))


@pytest.fixture(scope="session")
def checkpoints(base: Path, tiny: dict[str, Path]) -> dict[str, Path]:
    """Every checkpoint by name."""
    return Folders(lambda name: base if name == "base" else tiny[name])


@pytest.fixture(scope="session")
def bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle with fp32 and int8 of every checkpoint."""
    from mlm_infer.export import export_bundle

    from mlm_infer.shared.samples import movie_reviews
    from tests.helpers.int8 import BUDGET

    folder = tmp_path_factory.mktemp("bundles")
    few = tmp_path_factory.mktemp("text") / "few.txt"
    few.write_text("\n".join(movie_reviews()[:200]), encoding="utf-8")

    def export(name: str) -> Path:
        # What int8 keeps is tested on the first four; the others need only few texts to be made.
        text = None if name in ("base", "bert", "distilbert", "roberta") else few
        export_bundle(
            str(checkpoints[name]),
            folder / name,
            # Of SqueezeBERT's layers, convolutions, int8 would leave most as they are.
            precisions=["fp32"] if name == "squeezebert" else ["fp32", "int8"],
            calibration_data=None if name in ("esm", "esmc") else text,
            budget=BUDGET,
        )
        return folder / name

    return Folders(export)


@pytest.fixture(scope="session")
def torch_bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle with fp32, fp16 and TorchScript of every checkpoint."""
    from mlm_infer.export import export_bundle

    folder = tmp_path_factory.mktemp("torch-bundles")

    def export(name: str) -> Path:
        precisions, formats = ["fp32", "fp16"], ["onnx", "torchscript"]
        export_bundle(str(checkpoints[name]), folder / name, precisions=precisions, formats=formats)
        return folder / name

    return Folders(export)


@pytest.fixture
def offline_pipeline() -> Iterator[Any]:
    """`transformers.pipeline("fill-mask")` on the CPU, with logging suppressed."""
    from transformers import pipeline
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield lambda path: pipeline("fill-mask", model=str(path), device="cpu")
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module", params=["base", "roberta"])
def pair(request: Any, bundles: dict[str, Path], checkpoints: dict[str, Path]) -> tuple[Any, Any]:
    """A model in fp32 and the same model in PyTorch: one real, one with a byte-level vocabulary."""
    from tests.helpers.reference import Reference

    return MaskFiller(bundles[request.param], precision="fp32"), Reference(checkpoints[request.param])


@pytest.fixture(scope="module")
def shipped() -> MaskFiller:
    """The small model of the package."""
    return MaskFiller(device="cpu", threads=1)
