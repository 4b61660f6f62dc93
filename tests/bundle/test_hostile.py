"""Hostile models can only give answers or an error of this package."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlm_infer import BundleError, InputError, MaskFiller
from mlm_infer.bundle.manifest import Manifest
from mlm_infer.inspection import verify_bundle
from tests.helpers.hostile import edit, torchscript_only, with_graph, with_tokenizer
from tests.helpers.paths import SHIPPED


def test_torchscript_runs_on_request_only(tmp_path: Path) -> None:
    """A file that runs code on loading does so only if TorchScript is requested explicitly."""
    written = tmp_path / "written"
    bundle = torchscript_only(tmp_path / "bundle", written)
    with pytest.raises(InputError, match=r"such a file is code.*backend='torchscript' \(--backend torchscript\)"):
        MaskFiller(bundle)
    commands: list[list[str | Path]] = [
        ["mlm-fill", "A [MASK].", "-m", bundle],
        ["mlm-export", "info", bundle],
        ["mlm-export", "verify", bundle],
        ["mlm-bench", bundle],
    ]
    for command in commands:
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
    """The test run on opening checks number, type, width and values of the outputs."""
    MaskFiller(with_graph(tmp_path / "good", {})).fill(LONGER)
    with pytest.raises(BundleError, match=f"bad: its model gives .*{next(iter(replaced))}.*export it again$"):
        MaskFiller(with_graph(tmp_path / "bad", replaced))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["NaN", "shape"])
def test_a_graph_is_held_to_its_contract_later(call: str, fault: str, tmp_path: Path) -> None:
    """A graph that is correct for the first text and invalid for later ones."""
    token = np.array([[5]])
    fixed = {"top_ids": token, "top_logprobs": HALF, "candidate_logprobs": HALF}
    if fault == "NaN":
        filler = MaskFiller(with_graph(tmp_path / "bundle", {}, good_length=3))
    else:
        filler = MaskFiller(with_graph(tmp_path / "bundle", fixed))
    with pytest.raises(BundleError, match=r"its model gives (nan in|\w+ as) .*export it again$"):
        CALLS[call](filler)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((3, 30522), np.float32),
        np.zeros((1, 2, 30522), np.float32),
        np.zeros((1, 3, 30522), np.int64),
        np.zeros((1, 3, 0), np.float32),
        np.zeros((1, 3, 30521), np.float32),
        np.full((1, 3, 30522), np.nan, np.float32),
        np.array(0, np.float32),
    ],
    ids=lambda logits: f"{logits.dtype} {logits.shape} {logits.max(initial=0)}",
)
def test_a_plain_export_is_held_to_its_contract(
    logits: NDArray[np.generic], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third-party export must give logits for every token."""
    from onnx import TensorProto, helper, numpy_helper, save

    # As where the extra [export] is not installed: it runs as it is.
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [None, None])
    kind = helper.np_dtype_to_tensor_dtype(logits.dtype)
    constant = helper.make_node("Constant", [], ["logits"], value=numpy_helper.from_array(logits))
    graph = helper.make_graph([constant], "g", [ids], [helper.make_tensor_value_info("logits", kind, None)])
    save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 30522}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"gives (logits|nan) .*export it again$"):
        MaskFiller(tmp_path)


def test_a_vocabulary_that_is_none(tmp_path: Path) -> None:
    """A vocabulary size of two billion, or one above the model's, is rejected before memory is allocated."""
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    for size, message in ((2**31 - 1, "2147483647, not from 1 to 16777215"), (30523, "30523")):
        edit(tmp_path / "bundle", lambda values, size=size: values.update(vocab_size=size))  # type: ignore[misc]
        with pytest.raises(BundleError, match=f"vocab_size is {message}"):
            MaskFiller(tmp_path / "bundle").fill(LONGER, words_only=True)


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    """Return a normalizer rule that replaces a string."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def normalizers(*rules: dict[str, Any]) -> dict[str, Any]:
    """Return a change that sets the normalizer rules of a tokenizer."""
    return {"normalizer": {"type": "Sequence", "normalizers": rules}}


TWO = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLE = {"type": "TemplateProcessing", "single": TWO, "pair": TWO, "special_tokens": {}}
BROKEN: dict[str, dict[str, Any]] = {
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a table of four gigabytes": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAAAAAA"}
    },
    "a table that leads nowhere": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}},
    "a regular expression that takes for ever": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a decoder that cuts more than there is": {"decoder": {"type": "Strip", "content": "#", "start": 9, "stop": 2**63}},
    "letters doubled forty times": normalizers(*[replace("a", "aa")] * 40),
    "letters that become letters doubled": normalizers(*[replace("a", "bb"), replace("b", "aa")] * 20),
    "spaces between letters, forty times": normalizers(*[replace("", " ", "Regex")] * 40),
    "a prefix doubled forty times": normalizers({"type": "Prepend", "prepend": "z"}, *[replace("z", "zz")] * 40),
    "a prefix of ten megabytes": normalizers({"type": "Prepend", "prepend": "z" * 10_000_000}),
    "bytes of bytes": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}},
    "a text twice, forty times": {"post_processor": {"type": "Sequence", "processors": [DOUBLE] * 40}},
    "words doubled forty times": {"decoder": {"type": "Sequence", "decoders": [replace("e", "ee")] * 40}},
    "no suffix, forty times": {
        "decoder": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 40}
    },
    "no tokenizer": {"model": {}},
    "rules that are none": {"normalizer": ["Replace"]},
    "rules without end": {"normalizer": {"type": "Sequence"}},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_ends_in_answers_or_our_error(name: str, tmp_path: Path) -> None:
    """Panics of the library, and rules that would exhaust memory, in a process with a memory limit."""
    bundle = with_tokenizer(tmp_path / "bundle", lambda values: values.update(BROKEN[name]))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from mlm_infer import BundleError, MaskFiller\n"
        "try:\n"
        f"    filler = MaskFiller({str(bundle)!r}, threads=1)\n"
        f"    for text in ({LONGER!r}, 'a' * 40 + '! [MASK] caf\xe9'):\n"
        "        filler.fill_batch([text, text], top_k=50)\n"
        "    filler.fill(text, words_only=True)\n"
        "except BundleError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    assert "bundle/tokenizer.json" in done.stdout


def test_long_texts_and_many_rules_are_no_fault(tmp_path: Path) -> None:
    """Only actual growth counts: rules that could lengthen a text but do not are accepted."""
    rules = [replace("\xdf", "ss"), *[replace(f"\xe4{letter}", "a" * 9) for letter in "abcdefgh"]]
    own = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"]
    kinds = [{"type": kind} for kind in ("NFKC", "NFKD", "Lowercase", "NFC")]
    bundle = with_tokenizer(tmp_path / "bundle", lambda values: values.update(normalizers(*kinds, *rules, own)))
    text = "so " * 100_000 + LONGER
    filler, expected = MaskFiller(bundle), MaskFiller(SHIPPED)
    assert filler.fill(text, long_text="window") == expected.fill(text, long_text="window")
    assert filler.count_tokens("Gro\xdf") == expected.count_tokens("Gross")


def test_info_writes_no_control_characters(tmp_path: Path) -> None:
    """Control characters that move the cursor, set colours or reverse text are escaped."""
    evil = "\x1b]0;title\x07\x9b2J\u202e\r\n\udc00"

    def change(values: dict[str, Any]) -> None:
        values["source"]["revision"] = evil
        values["created_with"][evil] = "1"
        values["models"]["int8"]["cpu"] = evil
        values["models"]["int8"]["details"]["layers"] = [{"scheme": evil}]

    shutil.copytree(SHIPPED, tmp_path / "bundle")
    edit(tmp_path / "bundle", change)
    for more in ([], ["--json"]):
        done = subprocess.run(
            ["mlm-export", "info", tmp_path / "bundle", *more], capture_output=True, text=True, check=True
        )
        assert done.stdout.count("title") == 4
        assert done.stdout.replace("\n", "").isprintable()
        assert done.stdout.count("\n") == (1 if more else 7)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.int8.onnx", "model.int8.weights"])
@pytest.mark.parametrize("way", ["another in its place", "written to, with its old time"])
def test_a_file_that_changes_while_it_is_opened(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is changed between its verification and its opening is rejected."""
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    check = Manifest.check_file

    def check_then_change(self: Manifest, folder: Path, checked: str) -> Path:
        path = check(self, folder, checked)
        if checked == name:
            status = path.stat()
            if way == "another in its place":
                shutil.copy(path, tmp_path / "other")
                (tmp_path / "other").replace(path)
            else:
                path.write_bytes(path.read_bytes())
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return path

    monkeypatch.setattr(Manifest, "check_file", check_then_change)
    with pytest.raises(BundleError, match=f"{name} was changed while it was opened; open it again"):
        MaskFiller(bundle)
