"""Exports: parity with PyTorch, rejected requests, and no leftovers after a failure."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from mlm_infer.export import export_bundle
from mlm_infer.export.source import Checkpoint
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import ExportError, InputError, ModelError, OutputExistsError
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.runtime.ort_session import Session
from tests.helpers.int8 import LEAST_AGREEMENT, least_of
from tests.helpers.pipeline import NAMES


def test_manifest_and_parity(bundles: dict[str, Path]) -> None:
    """The manifest contains the parity figures; fp32 is within tolerance for every shape, int8 within its budget."""
    manifest = read_manifest(bundles["base"])
    cases = manifest.parity["cases"]
    same = masks = 0.0
    assert {case["precision"] for case in cases} == {"fp32", "int8"}
    assert len({case["case"] for case in cases}) == 6
    for case in cases:
        if case["precision"] == "fp32":
            assert case["score_difference"] <= 1e-5
            assert case["top1"] == case["top5"] == 1
        else:
            # A shape has 2 to 65 masks, which alone tell little of a share; all cases together have 386.
            assert case["top1"] >= least_of(case["masks"])
            assert case["case"] != "sentences" or case["top1"] >= LEAST_AGREEMENT
            same += case["top1"] * case["masks"]
            masks += case["masks"]
    assert same >= LEAST_AGREEMENT * masks
    assert manifest.models["int8"].details["agreement"] >= LEAST_AGREEMENT
    assert manifest.parity["bytes"]["int8"] < 0.55 * manifest.parity["bytes"]["fp32"]
    assert manifest.max_length == 512


def test_roberta_length_and_padding(bundles: dict[str, Path]) -> None:
    """66 positions hold 64 tokens, and the padding id is that of the model."""
    manifest = read_manifest(bundles["roberta"])
    assert (manifest.max_length, manifest.pad_id) == (64, 1)


@pytest.mark.parametrize("name", NAMES)
def test_whole_rows(name: str, checkpoints: dict[str, Path], bundles: dict[str, Path]) -> None:
    """Logits, normalizer, top-k and candidates at selected rows of padded batches."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    model = AutoModelForMaskedLM.from_pretrained(checkpoints[name]).eval()
    session = Session(bundles[name] / "model.fp32.onnx", kind="cpu")
    random = np.random.default_rng(0)
    inputs = read_manifest(bundles[name]).inputs
    for lengths in ([2], [9, 4], [33, 1, 60, 17]):
        ids = np.full((len(lengths), max(lengths)), tokenizer.pad_token_id)
        for row, length in enumerate(lengths):
            ids[row, :length] = random.integers(10, 500, length)
        attention = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        rows = np.flatnonzero(attention.reshape(-1))[:: 1 + len(lengths)]
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(attention)).logits
        expected = torch.log_softmax(logits.reshape(-1, logits.shape[-1])[rows], -1).numpy()
        candidates = random.integers(0, expected.shape[1], (len(rows), 7))
        feeds = {"input_ids": ids, "attention_mask": attention, "token_type_ids": np.zeros_like(ids)}
        feeds = {key: feeds[key] for key in inputs}
        # As many slots as the text with most rows has; one with fewer repeats its first token.
        owners = rows // max(lengths)
        slots = np.repeat(np.arange(len(lengths))[:, None] * max(lengths), np.bincount(owners).max(), axis=1)
        places = np.concatenate([np.arange(count) for count in np.bincount(owners)])
        slots[owners, places] = rows
        feeds |= {"mask_positions": slots, "mask_rows": owners * slots.shape[1] + places}
        feeds |= {"k": np.array([4]), "candidates": candidates}
        found, normalizer, top_ids, top, chosen = session.run(
            ["logits", "log_normalizer", "top_ids", "top_logprobs", "candidate_logprobs"], feeds
        )
        np.testing.assert_allclose(found - normalizer, expected, atol=2e-4)
        np.testing.assert_allclose(chosen, np.take_along_axis(expected, candidates, 1), atol=2e-4)
        np.testing.assert_allclose(top, -np.sort(-expected, 1)[:, :4], atol=2e-4)
        np.testing.assert_array_equal(top_ids, np.argsort(-found, 1, kind="stable")[:, :4])


def test_int8_holds_no_fp32_matrices(bundles: dict[str, Path]) -> None:
    """All dense layers and the tied table are int8; the table has a second byte and is stored once."""
    graph = onnx.load(bundles["base"] / "model.int8.onnx").graph
    assert not [node.op_type for node in graph.node if node.op_type == "MatMul" and _constant(graph, node.input[1])]
    big = [tensor for tensor in graph.initializer if np.prod(tensor.dims) == 30522 * 128]
    assert [tensor.data_type for tensor in big] == [onnx.TensorProto.INT8] * 2


def _constant(graph: onnx.GraphProto, name: str) -> bool:
    return any(tensor.name == name for tensor in graph.initializer)


def test_existing_output(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A bundle is replaced with `overwrite` only, and not at all if it contains other files."""
    export_bundle(str(tiny["bert"]), tmp_path / "mine")
    with pytest.raises(OutputExistsError, match="--force"):
        export_bundle(str(tiny["bert"]), tmp_path / "mine")
    export_bundle(str(tiny["distilbert"]), tmp_path / "mine", overwrite=True)
    assert read_manifest(tmp_path / "mine").architecture == "distilbert"
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match=r"did not write \(notes\.txt\)"):
        export_bundle(str(tiny["bert"]), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_comes_during_the_export_is_kept(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The output folder is checked again before it is replaced."""
    export_bundle(str(tiny["bert"]), tmp_path / "mine")

    def step(text: str) -> None:
        if "comparing" in text:
            (tmp_path / "mine/notes.txt").write_text("keep")

    with pytest.raises(OutputExistsError, match=r"notes\.txt"):
        export_bundle(str(tiny["bert"]), tmp_path / "mine", overwrite=True, on_step=step)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert read_manifest(tmp_path / "mine").architecture == "bert"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def certain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with logits forty times as large, whose probabilities show fp32 rounding."""
    folder = tmp_path_factory.mktemp("certain")
    model = AutoModelForMaskedLM.from_pretrained(base)
    norm = model.cls.predictions.transform.LayerNorm
    with torch.no_grad():
        norm.weight.mul_(40)
        norm.bias.mul_(40)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_certain_answers_are_held_to_fp64(certain: Path, tmp_path: Path) -> None:
    """fp32 may deviate from fp64 by a multiple of PyTorch's own fp32 error, or of the ONNX file's."""
    report = export_bundle(str(certain), tmp_path / "out")
    worst = max(case.score_difference for case in report.cases)
    assert 1e-5 < worst < 1e-2
    Checkpoint(str(certain)).to_onnx(tmp_path / "plain")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(certain / name, tmp_path / "plain")
    again = export_bundle(str(tmp_path / "plain/model.onnx"), tmp_path / "again")
    assert max(case.score_difference for case in again.cases) < 1e-2


def test_what_is_further_off_is_refused(certain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 0.001 in a layer norm is more than rounding; the message gives both distances."""
    from mlm_infer.export import job
    from mlm_infer.export.serving import build_serving_graph as true

    def wrong(*args: Any, **kwargs: Any) -> Any:
        serving = true(*args, **kwargs)
        gain = next(
            each for each in serving.model.graph.initializers.values() if "LayerNorm.weight" in (each.name or "")
        )
        assert gain.const_value is not None
        gain.const_value = ir.tensor(gain.const_value.numpy() * np.float32(1.001), name=gain.name)
        return serving

    monkeypatch.setattr(job, "build_serving_graph", wrong)
    with pytest.raises(ExportError, match=r"fp32 model differs too much .* off the same in fp64, this one's \d\.\de"):
        export_bundle(str(certain), tmp_path / "out")


def test_scratch_of_the_living_is_left_alone(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A temporary folder with a held lock belongs to a running export; one with a free lock is removed."""
    held, free = tmp_path / ".out.export-held", tmp_path / ".out.export-free"
    for folder in (held, free):
        folder.mkdir()
        (folder / "lock").touch()
    code = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, held / "lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        export_bundle(str(tiny["bert"]), tmp_path / "out")
        assert held.exists()
        assert not free.exists()
        other.kill()


def test_head_without_weights(base: Path, tmp_path: Path) -> None:
    """An encoder without head weights is rejected, since its head would be random."""
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(base).save_pretrained(encoder)
    shutil.copy(base / "tokenizer.json", encoder)
    shutil.copy(base / "tokenizer_config.json", encoder)
    with pytest.raises(ModelError, match="random numbers"):
        export_bundle(str(encoder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_a_masked_language_model(tmp_path: Path) -> None:
    """A model of another kind, a folder without a configuration, and a name that is nowhere."""
    from transformers import BertConfig, GPT2Config, T5Config, ViTConfig

    for config, problem in (
        (GPT2Config(n_layer=1), "gpt2 model, which predicts from left to right"),
        (BertConfig(is_decoder=True), "bert model, which predicts from left to right"),
        (T5Config(), "t5 model, which predicts with a decoder"),
        (ViTConfig(), "vit model, for which transformers .* has no masked-language-model head"),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(ModelError, match=rf"is a {problem}; choose a masked language model"):
            export_bundle(str(tmp_path / config.model_type), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        export_bundle(str(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(InputError, match="int4"):
        export_bundle("x", tmp_path / "out", precisions=["int4"])


def test_terminated_export_leaves_nothing(base: Path, tmp_path: Path) -> None:
    """After SIGTERM there is no bundle and no temporary folder."""
    assert _kill(base, tmp_path, signal.SIGTERM) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_export_leaves_no_bundle(base: Path, tmp_path: Path) -> None:
    """SIGKILL leaves at most a hidden temporary folder, which the next export removes."""
    _kill(base, tmp_path, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    export_bundle(str(base), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _kill(base: Path, folder: Path, how: signal.Signals) -> int:
    with subprocess.Popen(["mlm-export", base, folder / "out"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("exporting"):
                break
        time.sleep(0.2)
        assert list(folder.iterdir())
        process.send_signal(how)
        process.stderr.read()
        return process.wait()


def test_full_disk(base: Path, tmp_path: Path) -> None:
    """A full disk gives a one-line error and leaves nothing."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    done = subprocess.run(
        ["mlm-export", base, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_command(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The table on stdout, the steps on stderr; --json; a second run fails with exit status 2."""
    command: list[str | Path] = ["mlm-export", tiny["roberta"], tmp_path / "out"]
    done = subprocess.run([*command, "--quantize", "--json"], capture_output=True, text=True, check=True)
    assert {case["precision"] for case in json.loads(done.stdout)["cases"]} == {"fp32", "int8"}
    assert "comparing with PyTorch" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    wrong = subprocess.run([*command, "--quantize", "--cpu", "sparc"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "'sparc' is not one of 'avx2', 'avx512', 'avx512_vnni', 'arm64'" in wrong.stderr
