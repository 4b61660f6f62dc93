"""On a GPU: the answers of the CPU. Skipped on machines without one."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from mlm_infer import DeviceError, MaskFiller
from tests.helpers.pipeline import NAMES, masked_sentences

ON_CUDA = {
    "onnx": pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not torch.cuda.is_available(),
        reason="needs a GPU, onnxruntime-gpu and a torch for CUDA",
    ),
    "torchscript": pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and a torch for CUDA"),
}
CASES = [
    pytest.param("onnx", "fp32", 1e-3, marks=ON_CUDA["onnx"]),
    pytest.param("onnx", "fp16", 0.05, marks=ON_CUDA["onnx"]),
    pytest.param("torchscript", "fp32", 1e-3, marks=ON_CUDA["torchscript"]),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "precision", "tolerance"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_same_answers_as_the_cpu(
    name: str, backend: str, precision: str, tolerance: float, torch_bundles: dict[str, Path]
) -> None:
    """Log-probabilities of given words, alone, in padded batches, and from many threads."""
    cpu = MaskFiller(torch_bundles[name], device="cpu", precision="fp32")
    cuda = MaskFiller(torch_bundles[name], device="cuda", precision=precision, backend=backend)
    assert "cuda" in cuda.info.provider.lower()
    texts = masked_sentences(cpu.info.mask_token, 80, seed=6)
    expected = cpu.fill_batch(texts, targets=["good", "bad", "the"])
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda text: cuda.fill(text, targets=["good", "bad", "the"]), texts))
    for found in (alone, cuda.fill_batch(texts, targets=["good", "bad", "the"])):
        for mine, theirs in zip(found, expected, strict=True):
            for one, other in zip(mine.masks, theirs.masks, strict=True):
                wanted = {each.text: each.logprob for each in other.predictions}
                logprobs = {each.text: each.logprob for each in one.predictions}
                assert logprobs.keys() == wanted.keys()
                np.testing.assert_allclose([logprobs[word] for word in wanted], list(wanted.values()), atol=tolerance)


@pytest.mark.gpu
@ON_CUDA["onnx"]
def test_choices(torch_bundles: dict[str, Path]) -> None:
    """`auto` selects the GPU and fp16; a GPU number that does not exist is an error."""
    info = MaskFiller(torch_bundles["bert"]).info
    assert (info.provider, info.precision) == ("CUDAExecutionProvider", "fp16")
    with pytest.raises(DeviceError, match="cuda:99"):
        MaskFiller(torch_bundles["bert"], device="cuda:99")


@pytest.mark.gpu
@ON_CUDA["onnx"]
def test_benchmark_on_cuda(base: Path, tmp_path: Path) -> None:
    """Every engine that runs on a GPU is measured and agrees with the pipeline."""
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "mlm_infer.benchmarks.peers", "--device", "cuda", "--shape", str(base)]
    command += ["--trained", str(base), "--singles", "6", "--sentences", "64", "--minutes", "0", "--even-if-busy"]
    subprocess.run([*command, "--work", str(tmp_path), "--output", str(output)], check=True, capture_output=True)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {"mlm-infer fp16", "mlm-infer fp32", "transformers pipeline"} <= set(found["shapes"][str(base)])
    for name, quality in found["quality"].items():
        assert quality["top1"] >= (0.95 if "fp16" in name else 0.99), name
