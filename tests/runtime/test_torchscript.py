"""The TorchScript backend: all batch shapes, PyTorch's answers, torch as the only dependency, wrong use."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mlm_infer.export import Budget, ParityCase, export_bundle
from mlm_infer.export.batches import Batch, feeds, mask_texts
from mlm_infer.export.parity import check_case, reference
from mlm_infer.export.source import Checkpoint
from mlm_infer.export.to_torchscript import TORCHSCRIPT_INPUTS
from transformers import AutoTokenizer

from mlm_infer import BundleError, DeviceError, ExportError, InputError, MaskFiller
from mlm_infer.bundle.manifest import hash_file
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.inspection import verify_bundle
from mlm_infer.runtime.torchscript import TorchScript
from tests.helpers.forks import ANSWERED, FORK
from tests.helpers.pipeline import NAMES, masked_sentences

FILE = "model.torchscript.pt"


def shapes(longest: int) -> list[list[int]]:
    """Text lengths of each batch: 1 to 9 texts, from 3 tokens to the maximum, equal and padded."""
    random = np.random.default_rng(0)
    alike = [[length] * batch for batch in (1, 2, 9) for length in (3, 4, 16, 17, longest)]
    padded = [random.integers(3, longest + 1, batch).tolist() for batch in range(2, 10) for _ in range(3)]
    return alike + padded


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_shape(name: str, checkpoints: dict[str, Path], torch_bundles: dict[str, Path]) -> None:
    """Every output equals PyTorch's for batch shapes that were not traced, with one to eight masks per text."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    model = Checkpoint(str(checkpoints[name]))
    script = TorchScript(torch_bundles[name] / FILE, kind="cpu")
    longest = min(read_manifest(torch_bundles[name]).max_length, 130)
    random = np.random.default_rng(1)
    slots = set()
    for lengths in shapes(longest):
        texts = [random.integers(1000, 1900, length - 2).tolist() for length in lengths]
        batch: Batch = mask_texts(tokenizer, texts, random, share=float(random.choice([0, 0.3])))
        batch = fewer_masks(batch, 8, int(tokenizer.mask_token_id))
        slots.add(batch.positions.shape[1])
        expected = reference(model, batch, TORCHSCRIPT_INPUTS, everywhere=True)
        outputs = ("logits", "log_normalizer", "top_ids", "top_logprobs", "candidate_logprobs")
        given = feeds(batch, ("input_ids", "attention_mask", "token_type_ids"), top_k=4)
        logits, normalizer, top_ids, top, chosen = script.run(outputs, given)
        np.testing.assert_allclose(logits - normalizer, expected, atol=2e-4)
        np.testing.assert_allclose(top, -np.sort(-expected, 1)[:, :4], atol=2e-4)
        np.testing.assert_allclose(np.take_along_axis(expected, top_ids, 1), top, atol=2e-4)
        np.testing.assert_allclose(chosen, np.take_along_axis(expected, batch.answers[:, None], 1), atol=2e-4)
    assert min(slots) == 1
    assert max(slots) == 8


def fewer_masks(batch: Batch, most: int, mask_id: int) -> Batch:
    """Return a batch in which no text has more than `most` masks."""
    slots = min(most, batch.positions.shape[1])
    width = batch.positions.shape[1]
    kept = batch.rows % width < slots
    ids = batch.input_ids.copy().reshape(-1)
    ids[batch.flat[~kept]] = batch.answers[~kept]
    assert (ids == mask_id).sum() == kept.sum()
    rows = batch.rows[kept] // width * slots + batch.rows[kept] % width
    positions = batch.positions[:, :slots]
    return Batch(ids.reshape(batch.input_ids.shape), batch.attention_mask, positions, rows, batch.answers[kept])


@pytest.mark.parametrize("name", NAMES)
def test_same_answers_as_onnx(name: str, torch_bundles: dict[str, Path]) -> None:
    """Both backends give the same answers, with and without targets."""
    exact, script = (
        MaskFiller(torch_bundles[name], precision="fp32", backend=each) for each in ("onnx", "torchscript")
    )
    assert (script.info.backend, script.info.precision, script.info.provider) == (
        "torchscript",
        "fp32",
        "TorchScript cpu",
    )
    texts = masked_sentences(exact.info.mask_token, 60, seed=4)
    for targets in (None, ["good", "bad", "the"]):
        pairs = zip(exact.fill_batch(texts, targets=targets), script.fill_batch(texts, targets=targets), strict=True)
        for one, other in pairs:
            for mine, theirs in zip(one.masks, other.masks, strict=True):
                np.testing.assert_allclose(
                    [each.logprob for each in mine.predictions],
                    [each.logprob for each in theirs.predictions],
                    atol=1e-4,
                )
                assert mine.predictions[0].sequence == theirs.predictions[0].sequence


def test_parity_is_in_the_manifest(torch_bundles: dict[str, Path]) -> None:
    """The same cases and tolerance as for ONNX; the file's hash is recorded."""
    manifest = read_manifest(torch_bundles["base"])
    cases = [case for case in manifest.parity["cases"] if case["precision"] == "torchscript"]
    assert len(cases) == 6
    assert all(case["score_difference"] <= 1e-5 and case["top1"] == 1 for case in cases)
    assert manifest.files[FILE] == hash_file(torch_bundles["base"] / FILE)
    # A tied head is not stored twice.
    assert manifest.parity["bytes"]["torchscript"] < 1.1 * manifest.parity["bytes"]["fp32"]


def test_trace_is_bound_to_no_device(torch_bundles: dict[str, Path]) -> None:
    """Tensors that the model creates are on the device of its input, so the file works on CUDA."""
    graph = TorchScript(torch_bundles["distilbert"] / FILE, kind="cpu")._module.inlined_graph
    assert not [each for each in graph.findAllNodes("prim::Constant") if each.output().type().kind() == "DeviceObjType"]
    assert graph.findAllNodes("prim::device")


def run_without(missing: list[str], bundle: Path) -> subprocess.CompletedProcess[str]:
    """Fill a mask with TorchScript in an interpreter without some packages."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
from mlm_infer import MaskFiller
print(MaskFiller({str(bundle)!r}, backend="torchscript").fill("A [MASK] film.").masks[0].predictions[0].text)
assert not [name for name in {missing} if sys.modules[name] is not None]
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")


def test_torch_alone(torch_bundles: dict[str, Path]) -> None:
    """Neither transformers nor ONNX Runtime is needed; without torch, the error has the pip command."""
    done = run_without(["transformers", "onnxruntime", "optimum", "onnx"], torch_bundles["bert"])
    expected = MaskFiller(torch_bundles["bert"]).fill("A [MASK] film.").masks[0].predictions[0].text
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")
    done = run_without(["torch"], torch_bundles["bert"])
    assert "DependencyError" in done.stderr
    assert "pip install 'mlm-infer[torchscript]'" in done.stderr


def test_threads(torch_bundles: dict[str, Path]) -> None:
    """`threads` sets torch's number, which is unchanged by default; sixteen threads give the answers of one."""
    before = torch.get_num_threads()
    try:
        MaskFiller(torch_bundles["bert"], backend="torchscript")
        assert torch.get_num_threads() == before
        filler = MaskFiller(torch_bundles["bert"], backend="torchscript", threads=1)
        assert torch.get_num_threads() == 1
        texts = masked_sentences("[MASK]", 60, seed=8)
        expected = [filler.fill(text) for text in texts]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(filler.fill, texts)) == expected
    finally:
        torch.set_num_threads(before)


def test_choice_of_backend(
    tiny: dict[str, Path], bundles: dict[str, Path], torch_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """`auto` selects ONNX Runtime; the error for a missing model says how to make it."""
    assert MaskFiller(torch_bundles["bert"]).info.backend == "onnx"
    with pytest.raises(InputError, match="mlm-export bert OUT --format torchscript"):
        MaskFiller(bundles["bert"], backend="torchscript")
    with pytest.raises(InputError, match="it must be 'auto', 'onnx', 'openvino' or 'torchscript'"):
        MaskFiller(bundles["bert"], backend="tensorflow")
    with pytest.raises(InputError, match="precision is 'fp16', but TorchScript models are fp32"):
        MaskFiller(torch_bundles["bert"], backend="torchscript", precision="fp16")
    alone = tmp_path / "alone"
    export_bundle(str(tiny["bert"]), alone, formats=["torchscript"])
    assert MaskFiller(alone, backend="torchscript").info.backend == "torchscript"
    with pytest.raises(InputError, match="holds TorchScript only, and such a file is code"):
        MaskFiller(alone)
    assert list(verify_bundle(alone, torchscript=True))[-1] == "torchscript: opens, known answers reproduced"
    with pytest.raises(InputError, match="mlm-export bert OUT --format onnx"):
        MaskFiller(alone, backend="onnx")


def test_cuda_that_is_not_there(torch_bundles: dict[str, Path]) -> None:
    """CUDA never falls back to the CPU silently; `auto` selects the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert MaskFiller(torch_bundles["bert"], backend="torchscript").info.provider == "TorchScript cpu"
    with pytest.raises(DeviceError, match="device is 'cuda', but"):
        MaskFiller(torch_bundles["bert"], backend="torchscript", device="cuda")


def test_damaged_file(torch_bundles: dict[str, Path], tmp_path: Path) -> None:
    """A changed file is rejected by its hash before torch reads it; an invalid one by torch."""
    bundle = Path(shutil.copytree(torch_bundles["bert"], tmp_path / "bundle"))
    path = bundle / FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{FILE} is damaged or was changed"):
        MaskFiller(bundle, backend="torchscript")
    path.write_bytes(b"no archive")
    values = json.loads((bundle / "mlm_infer.json").read_text())
    values["files"][FILE] = {"bytes": 10, "sha256": hash_file(path).sha256}
    (bundle / "mlm_infer.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=f"torch .* cannot load .*{FILE}"):
        MaskFiller(bundle, backend="torchscript")


def test_closed(torch_bundles: dict[str, Path]) -> None:
    """A closed filler raises an error that says so."""
    with MaskFiller(torch_bundles["bert"], backend="torchscript") as filler:
        filler.fill("A [MASK].")
    with pytest.raises(InputError, match="closed"):
        filler.fill("A [MASK].")


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_a_trace_that_differs_is_refused(difference: float) -> None:
    """TorchScript may deviate from fp64 by a multiple of PyTorch's own fp32 error, as fp32 may."""
    case = ParityCase("torchscript", "1 x 8", 2, difference, 0.0, 1.0, 1.0, 5.0, 5.0)
    with pytest.raises(ExportError, match=r"torchscript model differs too much .* on 1 x 8: .* 1\.0e-06"):
        check_case(case, Budget(), {"fp16"}, lambda: ((difference, 0.0), (1e-6, 0.0)))


def test_a_trace_whose_unlikely_tokens_differ_is_refused() -> None:
    """Log-probabilities are compared too, which differ for improbable tokens first."""
    case = ParityCase("torchscript", "1 x 8", 2, 1e-6, 0.05, 1.0, 1.0, 5.0, 5.0)
    with pytest.raises(ExportError, match=r"log-probabilities of that are 1\.0e-05 off .* this one's 5\.0e-02"):
        check_case(case, Budget(), {"fp16"}, lambda: ((1e-6, 0.05), (1e-7, 1e-5)))
    check_case(case, Budget(), {"fp16"}, lambda: ((1e-6, 0.05), (1e-7, 0.02)))


def test_model_that_cannot_be_traced(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A one-line error with torch's reason, and no bundle."""
    from transformers import BertForMaskedLM

    def no_tensor(*_args: object, **_kwargs: object) -> object:
        raise RuntimeError("cannot be traced here")

    forward = BertForMaskedLM.forward
    monkeypatch.setattr(
        BertForMaskedLM, "forward", lambda *a, **k: no_tensor() if torch._C._get_tracing_state() else forward(*a, **k)
    )
    with pytest.raises(ExportError, match="torch could not trace this bert: cannot be traced here"):
        export_bundle(str(tiny["bert"]), tmp_path / "out", formats=["torchscript"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command(tiny: dict[str, Path], tmp_path: Path) -> None:
    """`--format torchscript` alone writes no ONNX; with int8, both formats are required."""
    command: list[str | Path] = ["mlm-export", tiny["roberta"], tmp_path / "out", "--format", "torchscript"]
    wrong = subprocess.run([*command, "--quantize"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: TorchScript is fp32, so fp32, int8 needs --format onnx as well\n",
    )
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mlm_infer.json", FILE, "tokenizer.json"]
    fill: list[str | Path] = [
        "mlm-fill",
        "-m",
        tmp_path / "out",
        "A <mask> film.",
        "--backend",
        "torchscript",
        "--json",
    ]
    done = subprocess.run(fill, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["masks"][0]["predictions"]) == 5
    assert done.stderr == ""
    with pytest.raises(InputError, match="formats is 'torchscript'; it must hold one or more of 'onnx', 'torchscript'"):
        export_bundle("x", tmp_path / "y", formats="torchscript")


def test_a_forked_child_answers_and_ends(torch_bundles: dict[str, Path]) -> None:
    """Threads of torch do not survive a fork: the child computes on one thread."""
    inside = "assert filler.fill('A [MASK] film.') == before; filler.fill_batch(texts); filler.close()"
    code = FORK.format(before=ANSWERED, inside=inside).replace(
        "MaskFiller()", f"MaskFiller({str(torch_bundles['bert'])!r}, backend='torchscript', threads=2)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 7
