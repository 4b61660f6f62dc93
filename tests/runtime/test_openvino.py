"""The OpenVINO backend: the answers of ONNX Runtime, threads, processes, and wrong use."""

import operator
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from mlm_infer import DeviceError, InputError, MaskFiller
from tests.helpers.forks import FORK
from tests.helpers.pipeline import masked_sentences
from tests.helpers.serve import same


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The small model, int8."""
    return MaskFiller(backend="openvino")


def logprobs(filler: MaskFiller, texts: list[str], targets: list[str]) -> Any:
    """Return the log-probabilities of words at every mask."""
    found = filler.fill_batch(texts, targets=targets, top_k=len(targets))
    masks = [mask for each in found for mask in each.masks]
    rows = [{each.text: each.logprob for each in mask.predictions} for mask in masks]
    return np.array([[row[word] for word in targets] for row in rows])


def best(filler: MaskFiller, texts: list[str]) -> list[int]:
    """Return the most probable token of every mask."""
    return [mask.predictions[0].token_id for each in filler.fill_batch(texts, top_k=1) for mask in each.masks]


@pytest.mark.parametrize("name", ["base", "roberta"])
def test_fp32_answers_as_onnx_runtime(name: str, bundles: dict[str, Path]) -> None:
    """Every method, texts of all lengths together."""
    ours = MaskFiller(bundles[name], precision="fp32", device="cpu")
    other = MaskFiller(bundles[name], precision="fp32", backend="openvino")
    assert other.info.backend == "openvino"
    assert other.info.provider == "OpenVINO CPU"
    mask = ours.info.mask_token
    texts = masked_sentences(mask, 60, seed=1)
    for options in ({"top_k": 5}, {"targets": ["film", "story"]}, {"words_only": True, "top_k": 50}):
        found, wanted = other.fill_batch(texts, **options), ours.fill_batch(texts, **options)
        assert same([each.to_dict() for each in found], [each.to_dict() for each in wanted])
    text = f"A {mask} film."
    assert same(other.rank(text, ["good", "very bad"]).to_dict(), ours.rank(text, ["good", "very bad"]).to_dict())
    spans = f"A {mask} film {mask}."
    assert same(*([each.to_dict() for each in filler.infill(spans)] for filler in (other, ours)))
    assert same(*([each.to_dict() for each in filler.score(["A good film."])] for filler in (other, ours)))


def test_int8_is_near_that_of_onnx_runtime(filler: MaskFiller, shipped: MaskFiller) -> None:
    """Both compute the same integers but for rounding at the edge of a step."""
    texts = masked_sentences("[MASK]", 200, seed=2)
    words = ["film", "good", "the", "of"]
    assert filler.info.precision == "int8"
    difference = np.abs(logprobs(filler, texts, words) - logprobs(shipped, texts, words))
    assert difference.mean() < 0.05
    first, second = (best(each, texts) for each in (filler, shipped))
    assert sum(map(operator.eq, first, second)) > 0.97 * len(first)


def test_threads_share_a_filler(filler: MaskFiller) -> None:
    """Concurrent calls have requests of their own."""
    texts = masked_sentences("[MASK]", 40, seed=3)
    wanted = [filler.fill(text).to_dict() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = [each.to_dict() for each in pool.map(filler.fill, texts * 4)]
    assert same(found, wanted * 4)


def test_pickle_and_self_test(filler: MaskFiller) -> None:
    """A copy runs on the same backend, and known answers are those of the export."""
    copy = pickle.loads(pickle.dumps(filler))  # noqa: S301
    assert copy.info == filler.info
    assert same(copy.fill("A [MASK] film.").to_dict(), filler.fill("A [MASK] film.").to_dict())
    MaskFiller(backend="openvino", self_test=True)


def test_bf16(bundles: dict[str, Path]) -> None:
    """fp32 rounded in its products, on a processor that has bfloat16; elsewhere one line."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(DeviceError, match="this processor has no bfloat16; take precision='int8' or 'fp32'"):
            MaskFiller(bundles["base"], backend="openvino", precision="bf16")
        return
    rounded = MaskFiller(bundles["base"], backend="openvino", precision="bf16")
    exact = MaskFiller(bundles["base"], precision="fp32", device="cpu")
    assert rounded.info.precision == "bf16"
    texts = masked_sentences(exact.info.mask_token, 100, seed=4)
    words = ["film", "good", "the", "of"]
    difference = np.abs(logprobs(rounded, texts, words) - logprobs(exact, texts, words))
    assert 1e-5 < difference.max() < 0.2


def test_a_forked_child_is_told_and_ends() -> None:
    """OpenVINO's threads do not survive a fork; the child gets one line, and neither process hangs."""
    inside = (
        "from mlm_infer import DeviceError\n"
        "    try: filler.fill('A [MASK] film.')\n"
        "    except DeviceError as error: assert 'forked' in str(error)"
    )
    code = FORK.format(before="filler.fill('A [MASK] film.')", inside=inside)
    code = code.replace("MaskFiller()", "MaskFiller(backend='openvino')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"backend": "openvino", "device": "cuda"}, DeviceError, "the openvino backend runs on the CPU"),
        ({"precision": "bf16"}, InputError, "which only OpenVINO computes; take backend='openvino' too"),
        ({"backend": "openvino", "precision": "fp16"}, InputError, "precision is 'fp16', but"),
        ({"backend": "openvin"}, InputError, "it must be 'auto', 'onnx', 'openvino' or 'torchscript'"),
    ],
)
def test_wrong_use(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """One line each."""
    with pytest.raises(kind, match=message):
        MaskFiller(**arguments)


def test_nothing_is_sent_or_left(tmp_path: Path) -> None:
    """The import of OpenVINO would keep an identifier in the user's home and send an event; here it does not."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = (
        "from mlm_infer import MaskFiller; MaskFiller(backend='openvino')('A [MASK] film.'); import openvino_telemetry"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_without_openvino() -> None:
    """The pip command."""
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from mlm_infer import MaskFiller, DependencyError\n"
        "try: MaskFiller(backend='openvino')\n"
        "except DependencyError as error: assert \"pip install 'mlm-infer[openvino]'\" in str(error); sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
