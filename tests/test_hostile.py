"""What a stranger's model can do: nothing but give answers or an error of this package."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mlm_infer import BundleError, InputError, MaskFiller
from mlm_infer.inspection import verify_bundle

from .hostile import SHIPPED, edit, torchscript_only, with_graph


def test_torchscript_runs_on_request_only(tmp_path: Path) -> None:
    """A file that acts as it is loaded does so where TorchScript was asked for by name, and nowhere else."""
    written = tmp_path / "written"
    bundle = torchscript_only(tmp_path / "bundle", written)
    with pytest.raises(InputError, match=r"such a file is code.*backend='torchscript' \(--backend torchscript\)"):
        MaskFiller(bundle)
    for command in (
        ["mlm-fill", "A [MASK].", "-m", bundle],
        ["mlm-export", "info", bundle],
        ["mlm-export", "verify", bundle],
        ["mlm-bench", bundle],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == (0 if command[0] == "mlm-export" else 2), done.stderr
        assert done.stderr.count("\n") == done.returncode // 2
        assert not written.exists(), command
    assert list(verify_bundle(bundle))[-1].startswith("torchscript: not opened, since it is code")
    with pytest.raises(BundleError, match=r"torch cannot run .*model.torchscript.pt: "):
        MaskFiller(bundle, backend="torchscript").fill("A [MASK].")
    # The attack works: what holds it off is that nobody opens it.
    assert written.exists()


HALF = np.array([[np.log(0.5)]], np.float32)
LONGER = "A good [MASK] film."
CALLS: dict[str, Callable[[MaskFiller], object]] = {
    "fill": lambda f: f.fill(LONGER),
    "fill with targets": lambda f: f.fill(LONGER, targets=["good", "bad"]),
    "fill_batch": lambda f: f.fill_batch([LONGER, "The [MASK] is a [MASK]."], top_k=2),
    "pipeline": lambda f: f(LONGER),
    "pipeline with targets": lambda f: f(LONGER, targets=["good", "bad"]),
    "rank": lambda f: f.rank(LONGER, ["good", "very good"]),
    "infill": lambda f: f.infill(LONGER),
    "infill with a choice": lambda f: f.infill(LONGER, words_only=True),
    "score": lambda f: f.score(["A good film."]),
}


@pytest.mark.parametrize(
    "replaced",
    [
        {"top_ids": np.array([[5.0]], np.float32)},
        {"top_ids": np.array([[5]], np.int32)},
        {"top_ids": np.array([[-1]])},
        {"top_ids": np.array([[30522]])},
        {"top_ids": np.array([[2**62]])},
        {"top_ids": np.array([5])},
        {"top_ids": np.array(5)},
        {"top_ids": np.array([[b"word"]], object)},
        {"top_ids": np.zeros((2, 1), np.int64)},
        {"top_logprobs": np.full((1, 1), np.nan, np.float32)},
        {"top_logprobs": np.full((1, 1), np.inf, np.float32)},
        {"top_logprobs": np.full((1, 1), 1000, np.float32)},
        {"top_logprobs": HALF.astype(np.float64)},
        {"top_logprobs": np.zeros((0, 1), np.float32)},
        {"candidate_logprobs": np.array([[1]])},
        {"candidate_logprobs": np.zeros((1, 0), np.float32)},
        {"candidate_logprobs": np.full((1, 1), np.nan, np.float32)},
        {"logits": np.zeros((1, 30521), np.float32)},
        {"logits": np.zeros((1, 30523), np.float32)},
        {"logits": np.array(0, np.float32)},
    ],
    ids=lambda replaced: " ".join(f"{name} {value.dtype} {value.tolist()!s:.20}" for name, value in replaced.items()),
)
def test_a_graph_is_held_to_its_contract_on_opening(replaced: dict[str, NDArray[np.generic]], tmp_path: Path) -> None:
    """One run tells number, type, width and values."""
    MaskFiller(with_graph(tmp_path / "good", {})).fill(LONGER)
    with pytest.raises(BundleError, match=f"bad: its model gives .*{next(iter(replaced))}.*export it again$"):
        MaskFiller(with_graph(tmp_path / "bad", replaced))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["NaN", "shape"])
def test_a_graph_is_held_to_its_contract_later(call: str, fault: str, tmp_path: Path) -> None:
    """What is right for the first text, and breaks off afterwards."""
    token = np.array([[5]])
    fixed = {"top_ids": token, "top_logprobs": HALF, "candidate_logprobs": HALF}
    if fault == "NaN":
        filler = MaskFiller(with_graph(tmp_path / "bundle", {}, good_length=3))
    else:
        filler = MaskFiller(with_graph(tmp_path / "bundle", fixed))
    with pytest.raises(BundleError, match=r"its model gives (nan in|\w+ as) .*export it again$"):
        CALLS[call](filler)


def test_a_vocabulary_that_is_none(tmp_path: Path) -> None:
    """Two thousand million tokens, or one more than the model has, are refused before room is made for them."""
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    for size, message in (
        (2**31 - 1, "vocab_size is 2147483647, not from 1 to 16777215"),
        (30523, "vocab_size is 30523"),
    ):
        edit(tmp_path / "bundle", lambda values, size=size: values.update(vocab_size=size))
        with pytest.raises(BundleError, match=message):
            MaskFiller(tmp_path / "bundle").fill(LONGER, words_only=True)
