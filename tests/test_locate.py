"""Other people's models: plain ONNX exports, checkpoints on first use, and the Hub."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer

from mlm_infer import BundleError, DependencyError, InputError, MaskFiller, ModelError
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.errors import ExportError
from mlm_infer.locate.cache import CACHE_VARIABLE
from mlm_infer.runtime.best import best_of
from mlm_infer.shared.samples import movie_reviews

from .hub_server import serve_hub
from .test_pipeline_parity import assert_same, masked_sentences

SHIPPED = Path(__file__).resolve().parent.parent / "mlm_infer/resources/english-small"
LINE = "A [MASK] film."


@pytest.fixture(scope="session")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain exports: as Optimum writes them, and as transformers.js does, with an older version of ONNX."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from optimum.exporters.onnx import main_export

    folder = tmp_path_factory.mktemp("exports")
    for name in ("base", "roberta"):
        main_export(str(checkpoints[name]), folder / name, task="fill-mask", do_validation=False)
        quantize_dynamic(folder / name / "model.onnx", folder / name / "model_quantized.onnx")
    js = folder / "js"
    main_export(str(checkpoints["base"]), js, task="fill-mask", opset=14, do_validation=False)
    (js / "onnx").mkdir()
    onnx.save(convert_float_to_float16(onnx.load(js / "model.onnx")), js / "onnx/model_fp16.onnx")
    (js / "model.onnx").rename(js / "onnx/model.onnx")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra [export] is not installed."""
    monkeypatch.setitem(sys.modules, "onnx_ir", None)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the plain export of the real model, to damage."""
    return Path(shutil.copytree(exports["base"], tmp_path / "plain"))


def pipeline_of(folder: Path, file: str) -> Any:
    """The transformers pipeline on an ONNX file, as Optimum runs it."""
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
    """With the answers of Optimum's own runtime, alone and in a batch of any lengths."""
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
    """The bundle of the real model, made before any test takes the exporting packages away."""
    return MaskFiller(bundles["base"], precision="fp32")


@pytest.mark.usefixtures("alone")
def test_every_method_on_a_plain_export(exports: dict[str, Path], bundle: MaskFiller) -> None:
    """As a bundle of the same model answers."""
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
    again = pickle.loads(pickle.dumps(plain))  # noqa: S301
    assert again.fill(LINE) == plain.fill(LINE)


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
    """Once, with the masks' rows alone in the vocabulary head, the same answers, and its steps on stderr."""
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


def test_checkpoint_is_exported_on_first_use(
    base: Path, cache: Path, offline_pipeline: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Into the cache by content: the same weights in another folder are the same entry, other weights are not."""
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
    """The second waits for the first and takes what it made."""
    code = f"from mlm_infer import MaskFiller; MaskFiller({str(base)!r}).fill({LINE!r})"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=300)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sorted("exporting with optimum ..." in each for each in said) == [False, True]
    assert any("waiting for it" in each for each in said)
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1


@pytest.mark.usefixtures("alone")
def test_checkpoint_without_export(base: Path) -> None:
    """The error names what to install and what to run."""
    with pytest.raises(DependencyError, match=rf"pip install 'mlm-infer\[export\]'.*mlm-export {base} OUT"):
        MaskFiller(base)


def test_checkpoint_that_cannot_be_exported(base: Path, cache: Path, tmp_path: Path) -> None:
    """The reason of mlm-export comes through, and nothing stays behind."""
    from transformers import AutoModel

    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "headless")
    with pytest.raises(ExportError, match=r"cannot export .*headless: .* lacks . weights"):
        MaskFiller(tmp_path / "headless")
    assert not [each for each in cache.iterdir() if each.is_dir()]
    with pytest.raises(InputError, match="precision is 'int4'"):
        MaskFiller(base, precision="int4")


def test_cache_that_cannot_be_written(
    base: Path, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    """A checkpoint ends in an error that says how to go on; a plain export runs as it is."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(BundleError, match=rf"cannot be written.*{CACHE_VARIABLE}.*mlm-export {base} OUT"):
        MaskFiller(base)
    assert MaskFiller(exports["base"]).info.path == exports["base"]
    assert "cannot be written" in caplog.text
    assert "runs as it is" in caplog.text


def edit(file: Path, **values: object) -> None:
    """Change settings; None takes one away."""
    found = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps({name: each for name, each in found.items() if each is not None}), encoding="utf-8")


def rename_output(folder: Path) -> None:
    """Make an encoder of it, by name."""
    model = onnx.load(folder / "model.onnx")
    name = model.graph.output[0].name = "last_hidden_state"
    model.graph.node[-1].output[0] = name
    onnx.save(model, folder / "model.onnx")


def rename_input(folder: Path) -> None:
    """Let it take what a text does not give."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, ["batch"]))
    onnx.save(model, folder / "model.onnx")


def fix_shape(folder: Path) -> None:
    """Freeze the batch."""
    model = onnx.load(folder / "model.onnx")
    for each in model.graph.input:
        each.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "model.onnx")


def outside(folder: Path) -> None:
    """Put the weights where they must not be."""
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)


def no_mask(folder: Path) -> None:
    """Take the mask from the settings."""
    edit(folder / "tokenizer_config.json", mask_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (rename_output, ModelError, "gives last_hidden_state and no logits"),
        (rename_input, ModelError, "takes the inputs .*pixel_values"),
        (fix_shape, ModelError, "dynamic axes"),
        (outside, BundleError, "asks for the file 'weights.bin'"),
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
    """One line each, which names the file or the value."""
    damage(copy)
    with pytest.raises(error, match=message) as caught:
        MaskFiller(copy).fill(LINE)
    assert "\n" not in str(caught.value)


def test_export_reads_no_foreign_file(copy: Path, tmp_path: Path) -> None:
    """A graph that asks for what is not its own is refused by mlm-export as well."""
    outside(copy)
    command = ["mlm-export", str(copy / "model.onnx"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "asks for the file 'weights.bin'" in done.stderr


@pytest.mark.usefixtures("alone")
def test_limits_of_a_plain_export(copy: Path) -> None:
    """The smallest that the settings name counts, a nonsense one does not; a wrong precision names those there."""
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


def test_best_of_a_row() -> None:
    """The k largest, the lower index first among equals, as ONNX Runtime orders them; NaN is the least."""
    row = np.array([1, 3, 3, np.nan, 3, 0], np.float32)
    for k in range(7):
        assert best_of(np.arange(6), row, k)[0].tolist() == [1, 2, 4, 0, 5, 3][:k]


def ask(
    model: str, home: Path, hub: str, *, alone: bool = False, offline: str = "", **options: object
) -> tuple[dict[str, Any], str]:
    """Open a model in a process that has a Hub cache of its own, and fill a mask; return what is told, and stderr."""
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
    """Only what is needed is downloaded, once; then it is there without the Hub."""
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
    """Downloaded without what is not needed, exported, and known by its name on the Hub."""
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
