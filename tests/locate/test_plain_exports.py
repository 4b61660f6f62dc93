"""Plain ONNX exports: run as they are, converted on first use, or rejected."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer

from mlm_infer import BundleError, InputError, MaskFiller, ModelError
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.locate.cache import CACHE_VARIABLE
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.pipeline import assert_same, masked_sentences

LINE = "A [MASK] film."


def pipeline_of(folder: Path, file: str) -> Any:
    """The transformers pipeline on an ONNX file, with Optimum."""
    from optimum.onnxruntime import ORTModelForMaskedLM
    from transformers import pipeline

    model = ORTModelForMaskedLM.from_pretrained(folder, file_name=Path(file).name, subfolder=str(Path(file).parent))
    return pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "file", "precision"),
    [
        ("base", "model.onnx", "fp32"),
        ("base", "model_quantized.onnx", "int8"),
        ("js", "onnx/model.onnx", "fp32"),
        ("roberta", "model.onnx", "fp32"),
    ],
)
def test_plain_export_runs_as_it_is(name: str, file: str, precision: str, exports: dict[str, Path]) -> None:
    """With the answers of Optimum's runtime, alone and in batches of mixed lengths."""
    pipe = pipeline_of(exports[name], file)
    filler = MaskFiller(exports[name], precision=precision)
    assert (filler.info.precision, filler.info.backend, filler.info.source) == (precision, "onnx", name)
    texts = masked_sentences(pipe.tokenizer.mask_token, 60, seed=2)
    theirs = [pipe(text, top_k=9) for text in texts]
    assert_same([filler(text, top_k=9) for text in texts], theirs)
    if precision == "fp32":
        assert_same(filler(texts, top_k=9), theirs)
    by_file = MaskFiller(exports[name] / file)
    assert by_file.info.precision == precision
    assert by_file.fill(texts[0]) == filler.fill(texts[0])


@pytest.fixture(scope="module")
def bundle(bundles: dict[str, Path]) -> MaskFiller:
    """The bundle of the real model, made before a test hides the exporting packages."""
    return MaskFiller(bundles["base"], precision="fp32")


@pytest.mark.usefixtures("alone")
def test_every_method_on_a_plain_export(exports: dict[str, Path], bundle: MaskFiller) -> None:
    """The answers equal those of a bundle of the same model."""
    plain = MaskFiller(exports["base"])
    calls: list[Callable[[MaskFiller], list[float]]] = [
        lambda f: [each.logprob for each in f.rank(LINE, ["good", "very good", "zebra"]).masks[0]],
        lambda f: [each.logprob for each in f.infill("A [MASK:1-2] film and a [MASK].", top_k=3)],
        lambda f: [score.logprob for score in f.score(list(movie_reviews("validation")[:3]))],
        lambda f: [each.logprob for each in f.fill(LINE, targets=["good", "bad"]).masks[0].predictions],
        lambda f: [each.logprob for each in f.fill(LINE, top_k=30_522).masks[0].predictions][:1000],
        lambda f: [each.logprob for each in f.fill(LINE, words_only=True, top_k=50).masks[0].predictions],
        lambda f: [each.logprob for each in f.fill("so " * 600 + LINE, long_text="window").masks[0].predictions],
    ]
    for call in calls:
        assert call(plain) == pytest.approx(call(bundle), abs=1e-3)
    packed = pickle.dumps(plain)
    assert pickle.loads(packed).fill(LINE) == plain.fill(LINE)  # noqa: S301
    # Another file in its place has another pickle.
    model = exports["base"] / "model.onnx"
    changed = model.stat().st_mtime_ns
    os.utime(model, ns=(changed, changed + 1_000_000))
    assert pickle.dumps(MaskFiller(exports["base"])) != packed


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("roberta", "fp32"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("base", "fp32"), ("base", "int8"), ("js", "fp16")]),
    ],
)
def test_plain_export_becomes_a_bundle(
    name: str, precision: str, exports: dict[str, Path], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, with row selection and the same answers; the steps are printed on stderr."""
    filler = MaskFiller(exports[name], precision=precision)
    assert "building the serving graph ..." in capfd.readouterr().err
    assert filler.info.path.parent == cache
    assert (filler.info.source, filler.info.precision) == (name, precision)
    assert filler.info.max_length == 512 if name != "roberta" else filler.info.max_length < 512
    stored = read_manifest(filler.info.path).models[precision]
    graph = onnx.load(filler.info.path / stored.file, load_external_data=False).graph
    assert "mask_positions" in {each.name for each in graph.input}
    if precision == "fp32":
        assert stored.details["nodes_at_rows"] > 10
    texts = masked_sentences(filler.info.mask_token, 40, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnx_ir", None)
        plain = MaskFiller(exports[name], precision=precision)
    if precision == "fp32":
        assert_same(filler(texts), plain(texts))
    else:
        # A last digit decides which way a number is rounded.
        best = [
            [mask.predictions[0].token for mask in each.fill(text).masks] for text in texts for each in (filler, plain)
        ]
        assert np.mean([one == other for one, other in zip(best[::2], best[1::2], strict=True)]) >= 0.9
    capfd.readouterr()
    assert MaskFiller(exports[name], precision=precision).fill(LINE) == filler.fill(LINE)
    assert "exporting" not in capfd.readouterr().err
    assert MaskFiller(exports[name], precision=precision, self_test=True).info == filler.info


def edit(file: Path, **values: object) -> None:
    """Change settings; None removes one."""
    found = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps({name: each for name, each in found.items() if each is not None}), encoding="utf-8")


def rename_output(folder: Path) -> None:
    """Rename the output, as in an encoder without a head."""
    model = onnx.load(folder / "model.onnx")
    name = model.graph.output[0].name = "last_hidden_state"
    model.graph.node[-1].output[0] = name
    onnx.save(model, folder / "model.onnx")


def rename_input(folder: Path) -> None:
    """Rename an input to one that cannot be computed from text."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, ["batch"]))
    onnx.save(model, folder / "model.onnx")


def fix_shape(folder: Path) -> None:
    """Fix the batch size."""
    model = onnx.load(folder / "model.onnx")
    for each in model.graph.input:
        each.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "model.onnx")


def outside(folder: Path) -> None:
    """Move the weights to a place that is not allowed."""
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)


def no_mask(folder: Path) -> None:
    """Remove the mask token from the settings."""
    edit(folder / "tokenizer_config.json", mask_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (rename_output, ModelError, "gives last_hidden_state and no logits"),
        (rename_input, ModelError, "takes the inputs .*pixel_values"),
        (fix_shape, ModelError, "dynamic axes"),
        (outside, BundleError, "refers to the external file 'weights.bin'"),
        (no_mask, ModelError, "no mask token"),
        (lambda folder: (folder / "tokenizer.json").unlink(), BundleError, "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), BundleError, "cannot be used as a tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), BundleError, "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), BundleError, "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), BundleError, "holds no settings"),
        (lambda folder: edit(folder / "config.json", vocab_size="many"), BundleError, "vocab_size is 'many'"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), BundleError, "it is empty"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\x0a"), BundleError, "cut short"),
    ],
)
def test_damaged_plain_export(
    damage: Callable[[Path], object], error: type[Exception], message: str, copy: Path
) -> None:
    """A one-line error that names the file or the value."""
    damage(copy)
    with pytest.raises(error, match=message) as caught:
        MaskFiller(copy).fill(LINE)
    assert "\n" not in str(caught.value)


def test_export_reads_no_foreign_file(copy: Path, tmp_path: Path) -> None:
    """mlm-export rejects a graph that refers to a file other than its weights."""
    outside(copy)
    command = ["mlm-export", str(copy / "model.onnx"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "refers to the external file 'weights.bin'" in done.stderr


@pytest.mark.usefixtures("alone")
def test_limits_of_a_plain_export(copy: Path) -> None:
    """The smallest valid length limit counts; the error for a missing precision lists the existing ones."""
    edit(copy / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    assert MaskFiller(copy).info.max_length == 512
    edit(copy / "tokenizer_config.json", model_max_length=40)
    with pytest.raises(InputError, match="at most 40"):
        MaskFiller(copy).fill("so " * 60 + LINE)
    with pytest.raises(InputError, match="holds fp32, int8"):
        MaskFiller(copy, precision="fp16")
    with pytest.raises(InputError, match="is int8; take 'auto'"):
        MaskFiller(copy / "model_quantized.onnx", precision="fp32")
    with pytest.raises(InputError, match="revision is 'main'"):
        MaskFiller(copy, revision="main")


def test_cache_that_cannot_be_written(
    base: Path, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    """A checkpoint gives an error that suggests a remedy; a plain export runs as it is."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(BundleError, match=rf"cannot be written.*{CACHE_VARIABLE}.*mlm-export {base} OUT"):
        MaskFiller(base)
    assert MaskFiller(exports["base"]).info.path == exports["base"]
    assert "cannot be written" in caplog.text
    assert "runs as it is" in caplog.text
