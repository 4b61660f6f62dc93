"""fp16: what is stored in fp16, what stays in fp32, overflow, and the accuracy budget."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mlm_infer.export import export_bundle
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import DeviceError, ExportError, MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from tests.helpers.pipeline import NAMES, masked_sentences


@pytest.mark.parametrize("name", NAMES)
def test_what_is_half(name: str, torch_bundles: dict[str, Path]) -> None:
    """Dense layers and tables are fp16; layer norms, softmaxes, inputs and outputs are as in fp32."""
    half, full = (onnx.load(torch_bundles[name] / f"model.{each}.onnx").graph for each in ("fp16", "fp32"))
    kinds = {each.name: each.data_type for each in half.initializer}
    casts = {node.output[0] for node in half.node if node.op_type == "Cast" and node.attribute[0].i == 1}
    for node in half.node:
        if node.op_type == "LayerNormalization":
            assert kinds[node.input[1]] == kinds[node.input[2]] == onnx.TensorProto.FLOAT
        if node.op_type == "MatMul" and node.input[1] in kinds:
            assert kinds[node.input[1]] == onnx.TensorProto.FLOAT16
        if node.output[0] == "logits":
            assert node.input[0] in casts
    assert {node.op_type for node in half.node} - {node.op_type for node in full.node} <= {"Cast"}
    assert not [each for each in half.initializer if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1]
    for mine, theirs in ((half.input, full.input), (half.output, full.output)):
        assert [(each.name, each.type.tensor_type.elem_type) for each in mine] == [
            (each.name, each.type.tensor_type.elem_type) for each in theirs
        ]
    sizes = read_manifest(torch_bundles[name]).parity["bytes"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("name", NAMES)
def test_answers(name: str, torch_bundles: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Close to fp32, alone and in padded batches; on the CPU it runs with a warning that it is slow."""
    with caplog.at_level(logging.WARNING):
        filler = MaskFiller(torch_bundles[name], precision="fp16")
    assert [record.message for record in caplog.records] == [
        "fp16 is made for CUDA and is slower than fp32 on the CPU; export fp32 or int8 for the CPU"
    ]
    exact = MaskFiller(torch_bundles[name])
    assert exact.info.precision == "fp32"
    texts = masked_sentences(filler.info.mask_token, 60, seed=9)
    for one, other in zip(filler.fill_batch(texts), exact.fill_batch(texts), strict=True):
        for mine, theirs in zip(one.masks, other.masks, strict=True):
            np.testing.assert_allclose(
                [each.logprob for each in mine.predictions], [each.logprob for each in theirs.predictions], atol=0.02
            )


def test_mask_of_unfused_attention(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Unfused attention adds -3.4e38, which would be infinite in fp16 and give NaN."""
    plain = ["fusions", "attention", "rows"]
    report = export_bundle(str(tiny["bert"]), tmp_path / "out", precisions=["fp16"], without_passes=plain)
    graph = onnx.load(tmp_path / "out/model.fp16.onnx").graph
    assert len([node for node in graph.node if node.op_type == "Softmax"]) == 3
    assert [case.precision for case in report.cases] == ["fp16"] * 6
    assert max(case.score_difference for case in report.cases) < 1e-3
    assert MaskFiller(tmp_path / "out").info.precision == "fp16"


def test_model_that_overflows(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Activations beyond 65504 are infinite in fp16: the budget is missed, and no bundle is written."""
    model = AutoModelForMaskedLM.from_pretrained(tiny["bert"])
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight *= 1e5
    model.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / "large")
    with pytest.raises(ExportError, match="fp16 does not meet its budget"):
        export_bundle(str(tmp_path / "large"), tmp_path / "out", precisions=["fp16"])
    assert not (tmp_path / "out").exists()


def test_int8_is_not_for_cuda(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error suggests fp16; `auto` runs a bundle with int8 only on the CPU."""
    import onnxruntime

    # Whatever is installed here: the choice comes before anything of CUDA is touched.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(DeviceError, match="mlm-export MODEL OUT --precision fp16"):
        MaskFiller(bundles["bert"], device="cuda", precision="int8")
    with pytest.raises(DeviceError, match="mlm-export MODEL OUT --precision fp16"):
        MaskFiller(device="cuda:1")
    assert MaskFiller().info.provider == "CPUExecutionProvider"
