"""Graphs of whichever exporter: to a bundle in fp32 and int8 with the answers of PyTorch, and with the fast passes."""

import shutil
from pathlib import Path

import pytest
import torch
from mlm_infer.export import Budget, export_bundle
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.shared.samples import movie_reviews
from tests.conftest import Folders
from tests.helpers.architectures import IS_5, UNFUSED

FORMS = {"dynamo", "dynamo-18", "dynamo-21", "dynamo-23", "dynamo-eager", "dynamo-functions"} | {
    "optimum",
    "traced",
    "traced-14",
    "traced-sdpa",
    "transformers",
    "transformers-eager",
    "transformers-fused",
}
"""Those of tools/graph_corpus.py; which of them an environment can write, hangs on the exporters in it."""

MAIN = ("bert", "distilbert", "electra", "esm", "modernbert", "roberta", "xlm-roberta")


LESS_FUSED = (
    {
        ("modernbert", "traced"): 1,
        ("modernbert", "transformers"): 1,
        ("ultrabert", "traced"): 0,
        ("ultrabert", "transformers"): 0,
    }
    if IS_5
    else {}
)
"""Fused attentions of graphs that others exported with transformers 5: not all of their windows are recognized."""


def _here(forms: set[str]) -> list[str]:
    import graph_corpus

    assert set(graph_corpus.FORMS) == FORMS
    return sorted(form for form in forms if graph_corpus.FORMS[form][0] in graph_corpus.EXPORTERS)


def _cases() -> list[object]:
    """Every architecture in what its exporters write by default, and BERT in every form; most are slow."""
    from tiny_models import BUILDERS

    found: list[object] = []
    for form in _here(FORMS):
        plain = form in ("dynamo", "traced", "transformers")
        for name in BUILDERS if plain else ["bert"]:
            # Neither of torch's exporters supports Longformer's windows, and the older one not FNet's transform.
            if name != "longformer" and (name, form) != ("fnet", "traced"):
                quick = name in MAIN and form != "traced" if plain else form == "traced-sdpa"
                found.append(pytest.param(name, form, marks=() if quick or name == "bert" else pytest.mark.slow))
    return found


@pytest.fixture(scope="module")
def files(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX files by form and architecture, as `traced bert`."""
    from graph_corpus import write_file

    folder = tmp_path_factory.mktemp("files")

    def write(key: str) -> Path:
        form, name = key.split()
        return write_file(tiny[name], form, folder / form / name)

    return Folders(write)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text to calibrate on."""
    path = tmp_path_factory.mktemp("text") / "few.txt"
    path.write_text("\n".join(movie_reviews()[:200]), encoding="utf-8")
    return path


def to_bundle(file: Path, output: Path, text: Path | None, precisions: list[str]) -> list[str]:
    """Export a file, and return what was said on the way."""
    said: list[str] = []
    wide = Budget(max_perplexity_increase=0.05, min_agreement=0.9)
    export_bundle(str(file), output, precisions=precisions, calibration_data=text, budget=wide, on_step=said.append)
    return said


def assert_as_pytorch(checkpoint: Path, bundle: Path, precision: str = "fp32", tolerance: float = 1e-5) -> None:
    """The best tokens of texts of several lengths in one call are those of the model itself, alone and unpadded."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    filler = MaskFiller(bundle, precision=precision)
    mask = filler.info.mask_token
    texts = [f"{mask}", f"A {mask} A", f"A A A A A {mask} A A A {mask} A A A A"]
    for text, result in zip(texts, filler.fill_batch(texts, top_k=3), strict=True):
        given = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            rows = model(**given).logits[given["input_ids"] == tokenizer.mask_token_id].softmax(-1)
        for row, found in zip(rows, result.masks, strict=True):
            scores, ids = row.topk(3)
            assert [each.token_id for each in found.predictions] == ids.tolist()
            assert [each.score for each in found.predictions] == pytest.approx(scores.tolist(), abs=tolerance)


@pytest.mark.parametrize(("name", "form"), _cases())
def test_exporters(
    name: str, form: str, files: dict[str, Path], tiny: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    """No pass is left out; attention is fused and rows move up as in the graphs of Optimum; int8 finds its layers."""
    precisions = ["fp32"] if name == "squeezebert" else ["fp32", "int8"]
    text = None if name in ("esm", "esmc", "squeezebert") else few
    said = to_bundle(files[f"{form} {name}"], tmp_path / "out", text, precisions)
    assert not [line for line in said if "leaving out" in line]
    manifest = read_manifest(tmp_path / "out")
    cases = [case for case in manifest.parity["cases"] if case["precision"] == "fp32"]
    assert max(case["score_difference"] for case in cases) <= 1e-5
    assert {case["top1"] for case in cases} == {1}
    details = manifest.models["fp32"].details
    assert details["fusions"]["MultiHeadAttention"] == (0 if name in UNFUSED else LESS_FUSED.get((name, form), 2))
    assert details["nodes_at_rows"] >= (6 if name in ("luke", "squeezebert", "xmod") else 10)
    if "int8" in precisions:
        schemes = [layer["scheme"] for layer in manifest.models["int8"].details["layers"]]
        assert (
            len([scheme for scheme in schemes if scheme.startswith("int8")])
            >= len(schemes) - 1
            >= (7 if name == "fnet" else 10)
        )
    assert_as_pytorch(tiny[name], tmp_path / "out")


def _alterations() -> list[object]:
    from graph_alterations import ALTERATIONS

    quick = ("allowzero", "functions", "fp16-unnamed", "int32")
    return [pytest.param(each, marks=() if each in quick else pytest.mark.slow) for each in ALTERATIONS]


@pytest.mark.parametrize("alteration", _alterations())
def test_alterations(alteration: str, files: dict[str, Path], tiny: dict[str, Path], few: Path, tmp_path: Path) -> None:
    """What else files go around as: the passes find as much in them as in the file that they were made of."""
    from graph_alterations import ALTERATIONS

    folder = Path(shutil.copytree(files["traced bert"].parent, tmp_path / "file"))
    ALTERATIONS[alteration](folder / "model.onnx")
    (file,) = folder.glob("*.onnx")
    half = alteration.startswith("fp16")
    said = to_bundle(file, tmp_path / "out", None if half else few, ["fp16"] if half else ["fp32", "int8"])
    assert not [line for line in said if "leaving out" in line]
    models = read_manifest(tmp_path / "out").models
    for model in models.values():
        assert model.details["fusions"]["MultiHeadAttention"] == 2
        assert (model.details["nodes_at_masks"], model.details["nodes_at_rows"]) == (20, 18)
    precision, tolerance = ("fp16", 1e-3) if half else ("fp32", 1e-5)
    assert_as_pytorch(tiny["bert"], tmp_path / "out", precision, tolerance)


def test_transformers_js(files: dict[str, Path], few: Path, tmp_path: Path) -> None:
    """The graphs below `onnx` with the settings above, and the one in bytes, of which int8 alone is made."""
    from graph_corpus import as_transformers_js

    file = as_transformers_js(files["traced bert"], tmp_path / "model")
    to_bundle(file, tmp_path / "out", few, ["fp32", "int8"])
    assert set(read_manifest(tmp_path / "out").models) == {"fp32", "int8"}
    to_bundle(file.with_name("model_quantized.onnx"), tmp_path / "bytes", None, ["int8"])
    for case in read_manifest(tmp_path / "bytes").parity["cases"]:
        assert case["top1"] >= 0.9


def test_passes_can_be_left_out_one_by_one(files: dict[str, Path], tmp_path: Path) -> None:
    """Each is for speed alone: without it the answers are the same."""
    from mlm_infer.export.serving import PASSES

    form = _here({"dynamo", "traced-sdpa"})[0]
    for number, name in enumerate(PASSES):
        export_bundle(str(files[f"{form} bert"]), tmp_path / str(number), without_passes=[name])
        for case in read_manifest(tmp_path / str(number)).parity["cases"]:
            assert case["score_difference"] <= 1e-5
