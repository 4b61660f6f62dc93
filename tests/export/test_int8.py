"""int8: rounding, the accuracy budget, and overflow on any processor."""

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from mlm_infer.export import Budget, export_bundle
from mlm_infer.export.activations import add_quantized, plan_activation, simulate
from mlm_infer.export.run_model import open_model
from mlm_infer.export.weights import (
    adjacent_pairs,
    column_scales,
    feedback_factor,
    round_columns,
    round_with_feedback,
)

from mlm_infer import DataError, ExportError, InputError, MaskFiller
from mlm_infer.bundle.read_manifest import read_manifest
from tests.helpers.int8 import products, stats_of
from tests.helpers.pipeline import NAMES, masked_sentences


def test_tied_weights_are_stored_once(bundles: dict[str, Path]) -> None:
    """A tied head shares the embedding table: four bytes per number in fp32, two in int8."""
    for precision, width in (("fp32", 4), ("int8", 2)):
        size = read_manifest(bundles["base"]).parity["bytes"][precision]
        assert size < 1.2 * width * 30522 * 128


@pytest.mark.parametrize("name", NAMES)
def test_int8_does_not_depend_on_the_batch(name: str, bundles: dict[str, Path]) -> None:
    """With static scales, an answer differs between batches by fp32 rounding only."""
    filler = MaskFiller(bundles[name], precision="int8")
    texts = masked_sentences(filler.info.mask_token, 60, seed=7)
    for together, text in zip(filler.fill_batch(texts), texts, strict=True):
        alone = filler.fill(text, top_k=10)
        for one, other in zip(together.masks, alone.masks, strict=True):
            scores = {each.token_id: each.score for each in other.predictions}
            for each in one.predictions:
                assert each.score == pytest.approx(scores.get(each.token_id, 0), abs=5e-3)


@pytest.mark.parametrize("one_sided", [False, True])
def test_outlier_columns(one_sided: bool) -> None:
    """With two channels ten times as large, outlier columns leave less than a third of the error, in the graph too."""
    random = np.random.default_rng(0)
    values = random.standard_normal((256, 64)).astype(np.float32)
    values[:, [5, 40]] *= 12
    if one_sided:
        values = np.maximum(values, -0.17)
    stats = stats_of(values)
    plain, split = plan_activation(stats, 0.0), plan_activation(stats, 0.5)
    errors = [float(np.abs(simulate(each, values) - values).max()) for each in (plain, split)]
    assert errors[1] < errors[0] / 3
    assert set(split.columns.tolist()) >= {5, 40}
    assert len(split.columns) <= 32
    assert float(np.abs(simulate(split, values) - values).max()) <= split.scale * 2

    source = ir.val("x", dtype=ir.DataType.FLOAT, shape=["rows", 64])
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": 18}, name="split")
    end = ir.node("Identity", [source])
    graph.append(end)
    found, _, _ = add_quantized(graph, source, split)
    end.replace_input_with(0, found)
    end.outputs[0].name = "bytes"
    graph.outputs.append(end.outputs[0])
    (held,) = open_model(ir.Model(graph, ir_version=9)).run(None, {"x": values})
    total = (held[:, :64].astype(np.float32) - split.zero_point) * split.scale
    for index, channel in enumerate(split.columns):
        total[:, channel] += (held[:, 64 + index].astype(np.float32) - split.zero_point) * split.scale
    np.testing.assert_allclose(total, simulate(split, values), atol=1e-5)


def test_feedback_keeps_the_outputs_closer() -> None:
    """With correlated inputs, GPTQ rounding gives a smaller output error than rounding to nearest."""
    random = np.random.default_rng(0)
    values = (random.standard_normal((2000, 16)) @ random.standard_normal((16, 96))).astype(np.float32)
    weights = random.standard_normal((96, 48)).astype(np.float32)
    pairs = adjacent_pairs(np.arange(96))
    scales = column_scales(weights, pairs)
    nearest = round_columns(weights, scales, pairs)
    fed_back = round_with_feedback(weights, scales, feedback_factor(values.T @ values), pairs)
    errors = [float(np.linalg.norm(values @ (each * scales - weights))) for each in (nearest, fed_back)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("rows", [8, 33, 96])
def test_no_pair_of_weights_overflows(spread: float, rows: int) -> None:
    """Products of adjacent weights with 255 stay within 16 bits, outlier columns included; 8 bits are used."""
    random = np.random.default_rng(rows)
    weights = (random.standard_normal((rows, 64)) * np.exp(spread * random.standard_normal((rows, 1)))).astype(
        np.float32
    )
    values = random.standard_normal((500, rows)).astype(np.float32)
    channels = np.concatenate([np.arange(rows), [1, 3, 4, 4]])
    pairs = adjacent_pairs(channels)
    scales = column_scales(weights, pairs)
    for rounded in (
        round_columns(weights, scales, adjacent_pairs(np.arange(rows)))[: rows // 2 * 2],
        round_with_feedback(weights, scales, feedback_factor(values.T @ values), pairs)[channels],
    ):
        whole = rounded[: len(rounded) // 2 * 2].astype(int) * 255
        sums = whole[0::2] + whole[1::2]
        assert sums.max() <= 32767
        assert sums.min() >= -32768
        assert int(np.abs(rounded.astype(int)).max()) > 63


@pytest.mark.parametrize("name", [*NAMES, "albert", "esm", "mpnet"])
def test_int8_is_right_on_every_processor(name: str, bundles: dict[str, Path]) -> None:
    """In an exported file, no pair of products can overflow 16 bits."""
    matrices = products(bundles[name] / "model.int8.onnx")
    assert len(matrices) > 8
    for matrix in matrices:
        whole = matrix[: len(matrix) // 2 * 2].astype(int) * 255
        sums = whole[0::2] + whole[1::2]
        assert sums.max() <= 32767
        assert sums.min() >= -32768


def test_budget(base: Path, tmp_path: Path) -> None:
    """The report lists each layer; a tighter budget keeps more in fp32; one that cannot be met is an error."""
    for strict, message in ((True, r"top-1 agreement \d+\.\d% \(at least 99\.9%\)"), (False, r"of the size of fp32")):
        hard = Budget(max_perplexity_increase=0.0, min_agreement=0.999, strict=strict)
        with pytest.raises(ExportError, match=message):
            export_bundle(str(base), tmp_path / "out", precisions=["int8"], budget=hard)
    assert not (tmp_path / "out").exists()
    for values in ({"min_agreement": 98}, {"max_perplexity_increase": -0.1}, {"max_perplexity_increase": math.nan}):
        with pytest.raises(InputError, match=next(iter(values))):
            Budget(**values)
    export_bundle(str(base), tmp_path / "out", precisions=["int8"], budget=Budget(min_agreement=0.98))
    details = read_manifest(tmp_path / "out").models["int8"].details
    assert details["agreement"] >= 0.98
    schemes = [layer["scheme"] for layer in details["layers"]]
    assert len(schemes) == 15
    assert 0 < schemes.count("fp32") < 10
    assert details["calibration_text"] == "movie-reviews"


def test_a_budget_of_nothing_is_for_int8_alone(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The budget does not apply to fp32, which is compared with PyTorch."""
    export_bundle(str(tiny["bert"]), tmp_path / "out", budget=Budget(max_perplexity_increase=0.0, min_agreement=1.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 lines"),
        (b"too short\n" * 5, "has 5 lines"),
        (b"caf\xe9\n" * 50, "not UTF-8"),
        ("\N{HIRAGANA LETTER A}\n".encode() * 50, "its own language and alphabet"),
        (None, "no calibration file"),
    ],
)
def test_wrong_calibration_text(content: bytes | None, message: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Missing, too short, or not text."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        export_bundle(str(tiny["bert"]), tmp_path / "out", precisions=["int8"], calibration_data=path)


def test_own_calibration_text(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A calibration file of the user is used."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"The {word} film number {word}." for word in map(str, range(80))))
    void = Budget(max_perplexity_increase=10, min_agreement=0)
    export_bundle(str(tiny["bert"]), tmp_path / "out", precisions=["int8"], calibration_data=path, budget=void)
    assert read_manifest(tmp_path / "out").models["int8"].details["masks"] < 200


def test_correlations_that_rounding_left_indefinite() -> None:
    """A matrix with an eigenvalue below zero is damped until it can be factored."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    gram = basis @ np.diag([100.0, 1, 1, 1, 1, 1, 1, -5]) @ basis.T
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(gram)
    factor = feedback_factor(gram.astype(np.float32)).factor
    assert np.isfinite(factor).all()
    assert (np.diagonal(factor) > 0).all()
