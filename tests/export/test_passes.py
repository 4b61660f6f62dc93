"""The graph passes: what they fuse and move, that answers stay the same, and what is said of one that does not fit."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from mlm_infer.export import export_bundle
from mlm_infer.export.source import Checkpoint

from mlm_infer import InputError, MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from tests.helpers.pipeline import NAMES, masked_sentences


@pytest.mark.parametrize("name", NAMES)
def test_fusions_and_rows(name: str, bundles: dict[str, Path]) -> None:
    """Two layers: two attentions, three GELUs, six norms; the last layer and the head run at the masks."""
    details = read_manifest(bundles[name]).models["fp32"].details
    assert details["fusions"] == {"MultiHeadAttention": 2, "Gelu": 3, "LayerNormalization": 6}
    # Last layer from the query on: 2 + 1 + 3 + 2 + 5 nodes and the head's 5 or more; after attention one row a mask.
    assert details["nodes_at_masks"] >= 18
    assert details["nodes_at_rows"] >= 13
    graph = onnx.load(bundles[name] / "model.fp32.onnx", load_external_data=False).graph
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 1, "only that of the vocabulary is left"


@pytest.mark.parametrize("without", [("fusions",), ("attention",), ("rows",), ("fusions", "attention", "rows")])
def test_passes_can_be_left_out(without: tuple[str, ...], tiny: dict[str, Path], tmp_path: Path) -> None:
    """Each pass is for speed alone: the answers are the same without it."""
    export_bundle(str(tiny["distilbert"]), tmp_path / "plain", without_passes=without)
    export_bundle(str(tiny["distilbert"]), tmp_path / "fast")
    texts = masked_sentences("[MASK]", 20, seed=2)
    plain, fast = (MaskFiller(tmp_path / each).fill_batch(texts) for each in ("plain", "fast"))
    for one, other in zip(plain, fast, strict=True):
        for mine, theirs in zip(one.masks, other.masks, strict=True):
            np.testing.assert_allclose(
                [each.logprob for each in mine.predictions], [each.logprob for each in theirs.predictions], atol=1e-4
            )
    with pytest.raises(InputError, match="the passes are normalize, fusions, attention, rows"):
        export_bundle(str(tiny["bert"]), tmp_path / "x", without_passes=["speed"])


def test_a_pass_that_changes_the_answers_is_left_out(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out with one line that tells by how much, and the bundle is right."""
    from mlm_infer.export import serving
    from mlm_infer.export.attention import fuse_attention as true

    def wrong(graph: ir.Graph, shapes: Any) -> int:
        count = true(graph, shapes)
        for node in graph:
            if node.op_type == "MultiHeadAttention":
                node.attributes["scale"] = ir.AttrFloat32("scale", 0.9)
        return count

    monkeypatch.setattr(serving, "fuse_attention", wrong)
    steps: list[str] = []
    report = export_bundle(str(tiny["bert"]), tmp_path / "out", on_step=steps.append)
    (line,) = [step for step in steps if step.startswith("leaving out")]
    assert re.fullmatch(r"leaving out the graph pass attention, which changed the logits by \d\.\de[+-]\d\d", line)
    assert max(case.score_difference for case in report.cases) < 1e-5
    details = read_manifest(tmp_path / "out").models["fp32"].details
    assert details["fusions"].get("MultiHeadAttention", 0) == 0


@pytest.mark.parametrize("failing", ["fusions", "attention", "rows"])
def test_a_pass_that_does_not_fit_a_third_partys_graph_costs_itself_alone(
    failing: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out and named; the others are applied, each once, and the answers are the file's own."""
    from mlm_infer.export import serving

    calls: list[str] = []

    def counted(name: str, function: str) -> None:
        true = getattr(serving, function)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            found = true(*arguments, **options)
            if name == failing and (name != "rows" or "all_logits" in arguments[2]):
                raise KeyError(name)
            return found

        monkeypatch.setattr(serving, function, call)

    for name, function in (("fusions", "fuse"), ("attention", "fuse_attention"), ("rows", "move_rows_up")):
        counted(name, function)
    plain = tmp_path / "plain"
    Checkpoint(str(tiny["bert"])).to_onnx(plain)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny["bert"] / file, plain)
    steps: list[str] = []
    report = export_bundle(str(plain / "model.onnx"), tmp_path / "out", on_step=steps.append)
    assert [step for step in steps if step.startswith("leaving out")] == [
        f"leaving out the graph pass {failing}, which failed (KeyError: '{failing}')"
    ]
    details = read_manifest(tmp_path / "out").models["fp32"].details
    assert bool(details["fusions"].get("LayerNormalization")) == (failing != "fusions")
    assert bool(details["fusions"].get("MultiHeadAttention")) == (failing != "attention")
    assert (details["nodes_at_masks"] > 10) == (failing != "rows"), details
    assert calls.count("fusions") == calls.count("attention") == 1
    assert max(case.score_difference for case in report.cases) < 1e-5
