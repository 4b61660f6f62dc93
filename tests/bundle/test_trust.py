"""Everything in a bundle that can be verified is verified: fields, files, graph, known answers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from mlm_infer.export.known_answers import known_answers

from mlm_infer import BundleError, MaskFiller
from mlm_infer.bundle.graph_scan import external_files
from mlm_infer.bundle.manifest import MANIFEST, hash_file
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.inspection import describe_bundle, verify_bundle
from tests.helpers.hostile import edit, reseal
from tests.helpers.paths import ROOT, SHIPPED

GRAPH, WEIGHTS = "model.int8.onnx", "model.int8.weights"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle that a test may damage."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))


def setter(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change that sets a field of a manifest."""
    return lambda values: values.update({name: value})


def resize(name: str, size: int) -> Callable[[dict[str, Any]], object]:
    """Return a change of the size of a file in a manifest."""
    return lambda values: values["files"][name].update(bytes=size)


FREE = {
    "source",
    "parity",
    "created_with",
    "known_answers",
    "clean_up_spaces",
    "mixes_padding",
    "architecture",
    "mask_token",
}
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, "x", "", [], {}, [[]], {"a": None}, 10**30, float("nan"), "\ud800")


@pytest.mark.parametrize("name", [*json.loads((SHIPPED / "mlm_infer.json").read_text(encoding="utf-8"))])
def test_every_field_is_checked(name: str, bundle: Path) -> None:
    """An invalid value in any field gives a one-line BundleError."""
    right = read_manifest(SHIPPED)
    for value in WRONG:
        edit(bundle, setter(name, value))
        try:
            manifest = read_manifest(bundle)
        except BundleError:
            continue
        assert name in FREE, f"{name} may not be {value!r}"
        assert type(getattr(manifest, name)) is type(getattr(right, name))
    edit(bundle, lambda values: values.pop(name))
    with pytest.raises(BundleError, match=rf"\b{name}\b.*; export the model again$"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(mask_id=v["vocab_size"]), "mask_id is 30522, not from 0 to 30521"),
        (lambda v: v.update(max_length=2), "max_length is 2, not from 3"),
        (lambda v: v.update(inputs=["attention_mask"]), "inputs is"),
        (lambda v: v.update(inputs=["input_ids", "position_ids"]), "inputs is"),
        (lambda v: v.update(inputs=["input_ids", "input_ids"]), "inputs is"),
        (lambda v: v.update(mask_id=7), r"knows '\[MASK\]' as 103, the manifest says 7"),
        (lambda v: v["files"].update({"/etc/passwd": v["files"][GRAPH]}), "own folder"),
        (lambda v: v["files"].update({"..": v["files"][GRAPH]}), "own folder"),
        (lambda v: v["models"]["int8"].update(weights="../x"), "one of the files"),
        (lambda v: v["models"]["int8"].update(file=3), "models.int8.file is 3, not of type str"),
        (lambda v: v["files"][GRAPH].update(sha256="abc"), "64 hexadecimal digits"),
        (lambda v: v["files"].pop("tokenizer.json"), "with tokenizer.json"),
        (lambda v: v["files"]["tokenizer.json"].update(bytes=10**10), "the manifest says 10,000,000,000"),
        (lambda v: v["known_answers"]["int8"][0].pop("ids"), "text, ids and logprobs"),
        (lambda v: v["known_answers"]["int8"][0].update(ids=[[99999]], logprobs=[[-1]]), "text, ids and logprobs"),
    ],
)
def test_values_out_of_range(change: Callable[[dict[str, Any]], object], message: str, bundle: Path) -> None:
    """Ids outside the vocabulary, files outside the folder, unknown inputs."""
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        MaskFiller(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "no schema|not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"9" * 10_000, "not JSON|no schema"),
        (b"null", "no schema"),
        (b"", "not JSON"),
    ],
)
def test_manifests_that_are_none(content: bytes, message: str, bundle: Path) -> None:
    """Nested too deeply, not UTF-8, or not an object."""
    (bundle / "mlm_infer.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        MaskFiller(bundle)


def test_sizes_are_bounded(bundle: Path) -> None:
    """Oversized files are rejected before they are read; here sparse files, which would fill memory."""
    for name, size, message in (
        ("tokenizer.json", 10 << 30, "more than the 268,435,456"),
        (GRAPH, 10 << 30, "more than the 67,108,864"),
        ("mlm_infer.json", 1 << 30, "more than 16,777,216 bytes"),
    ):
        os.truncate(bundle / name, size)
        if name != "mlm_infer.json":
            edit(bundle, resize(name, size))
        with pytest.raises(BundleError, match=message):
            MaskFiller(bundle)
        shutil.copy(SHIPPED / "mlm_infer.json", bundle)
        shutil.copy(SHIPPED / name, bundle)
    assert MaskFiller(bundle).info.precision == "int8"


def test_links(bundle: Path, tmp_path: Path) -> None:
    """Links into the blobs of a Hub cache are accepted; all other links out of the folder are rejected."""
    snapshot = tmp_path / "models--me--small/snapshots/0123abc"
    blobs = tmp_path / "models--me--small/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(bundle.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert list(verify_bundle(snapshot))
    (tmp_path / "link").symlink_to(bundle)
    assert MaskFiller(tmp_path / "link").info.precision == "int8"

    elsewhere = shutil.copy(bundle / WEIGHTS, tmp_path / "elsewhere")
    for folder in (bundle, snapshot):
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(elsewhere)
        with pytest.raises(BundleError, match=f"{WEIGHTS} is a link to .*elsewhere"):
            MaskFiller(folder)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "tokenizer.json", "*/_ORT_MEM_ADDR_/*", ""])
@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function", "sparse"])
def test_a_graph_asks_for_its_weights_only(location: str, place: str, bundle: Path) -> None:
    """External data outside the weights file is rejected wherever a tensor can be, with matching hashes too."""
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    assert external_files((bundle / GRAPH).read_bytes()) == {WEIGHTS}
    tensor = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.UINT8, dims=[16])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    constant = onnx.helper.make_node("Constant", [], ["stolen"], value=tensor)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(constant)
    elif place == "subgraph":
        inner = onnx.helper.make_graph([constant], "inner", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    elif place == "function":
        model.functions.append(onnx.helper.make_function("own", "f", [], ["stolen"], [constant], []))
    else:
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[16]))
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    reseal(bundle, GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH} refers to the external file"):
        MaskFiller(bundle)


def test_scanner_of_graphs_agrees_with_onnx() -> None:
    """On truncated graphs, the scanner gives an error or at most the names that protobuf reads."""
    data = (SHIPPED / GRAPH).read_bytes()
    for end in np.random.default_rng(0).integers(0, len(data), 200):
        try:
            found = external_files(data[:end])
        except BundleError:
            with pytest.raises(Exception, match="pars"):
                onnx.ModelProto.FromString(data[:end])
            continue
        assert found <= {WEIGHTS}


def test_scanner_of_graphs_misses_no_file() -> None:
    """On graphs with changed bytes, it gives an error or every name that protobuf reads."""
    data = (SHIPPED / GRAPH).read_bytes()
    random = np.random.default_rng(0)
    answered = others = 0
    for _ in range(400):
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            changed[place] = random.integers(256)
        try:
            found = external_files(bytes(changed))
            graph = onnx.ModelProto.FromString(bytes(changed)).graph
        except (BundleError, DecodeError):
            continue
        # protobuf leaves a name that is no text as bytes.
        entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
        names = {entry.value for entry in entries if entry.key == "location"}
        read = {name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names}
        assert read <= found
        answered += 1
        others += read != {WEIGHTS}
    assert answered > 200
    assert others > 0


def test_schema_1_is_read(bundle: Path) -> None:
    """A manifest of schema 1 is readable; it has no known answers."""
    shutil.copy(ROOT / "tests/data/manifest-schema-1.json", bundle / "mlm_infer.json")
    manifest = read_manifest(bundle)
    assert manifest.known_answers == {}
    assert replace(manifest, known_answers=read_manifest(SHIPPED).known_answers) == read_manifest(SHIPPED)
    assert MaskFiller(bundle).fill("A [MASK].") == MaskFiller(SHIPPED).fill("A [MASK].")
    with pytest.raises(BundleError, match="holds no known answers for int8; export the model again"):
        MaskFiller(bundle, self_test=True)
    answered = replace(manifest, known_answers=known_answers(bundle, manifest))
    (bundle / MANIFEST).write_text(answered.to_json(), encoding="utf-8")
    MaskFiller(bundle, self_test=True)


def test_known_answers(bundle: Path) -> None:
    """Recorded for texts of several lengths, one with two masks; the shipped model reproduces them here."""
    answers = read_manifest(SHIPPED).known_answers["int8"]
    filler = MaskFiller(SHIPPED, self_test=True)
    lengths = [filler.count_tokens(each.text) for each in answers]
    assert min(lengths) == 3
    assert max(lengths) > 64
    assert 2 in [len(each.ids) for each in answers]
    assert all(len(row) == 5 for each in answers for row in each.ids)


def test_wrong_weights_are_told_by_the_known_answers(bundle: Path) -> None:
    """Random weights with matching hashes are detected, and the error states the deviation."""
    path = bundle / WEIGHTS
    weights = np.fromfile(path, np.int8)
    graph = onnx.load(bundle / GRAPH, load_external_data=False).graph
    largest = max(graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    offset = int({each.key: each.value for each in largest.external_data}["offset"])
    weights[offset : offset + 128 * 30522] = np.random.default_rng(0).integers(-63, 64, 128 * 30522)
    weights.tofile(path)
    reseal(bundle, WEIGHTS)
    MaskFiller(bundle)
    with pytest.raises(BundleError, match=r"must have log-probability -\d+\.\d+ \(within 0.25\), but has -\d"):
        MaskFiller(bundle, self_test=True)
    done = subprocess.run(["mlm-export", "verify", bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["tokenizer.json", GRAPH, WEIGHTS, "mlm_infer.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_verify_names_the_file(name: str, damage: str, bundle: Path) -> None:
    """A one-line error and exit status 1."""
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 3] ^= 0x20 if name != "mlm_infer.json" else 0x80
    if damage == "missing":
        (bundle / name).unlink()
    else:
        (bundle / name).write_bytes(data if damage == "flipped" else data[:-9])
    done = subprocess.run(["mlm-export", "verify", bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1


def test_info(bundle: Path) -> None:
    """As text and as JSON, from the manifest only."""
    found = describe_bundle(bundle)
    assert found.models["int8"].layers == {"int8": 8, "int8+columns": 7}
    for name in (WEIGHTS, GRAPH, "tokenizer.json"):
        (bundle / name).unlink()
    command: list[str | Path] = ["mlm-export", "info", bundle]
    table, as_json = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["--json"])
    )
    assert json.loads(as_json) == found.to_dict()
    for part in ("bert", "512", "[MASK]", "8 int8, 7 int8+columns", "avx2", "95.2%", "onnxruntime"):
        assert part in table


def test_verify_and_info_need_no_torch() -> None:
    """They run in an installation with [cpu] only."""
    code = (
        "import sys\nfrom mlm_infer.export.cli import main\n"
        f"try: main(['verify', {str(SHIPPED)!r}])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_checkpoint_called_verify(tiny: dict[str, Path], tmp_path: Path) -> None:
    """`./verify` is a folder, `verify` a command."""
    (tmp_path / "verify").symlink_to(tiny["bert"])
    for command, status in ((["./verify", "out"], 0), (["verify", "out"], 0), (["verify", "./verify"], 1)):
        done = subprocess.run(["mlm-export", *command], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == status, done.stderr
    assert (tmp_path / "out/mlm_infer.json").is_file()


@pytest.mark.slow
def test_exports_are_reproducible(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Two processes with different hash seeds write identical files to two folders."""
    for seed in ("1", "77"):
        command: list[str | Path] = ["mlm-export", tiny["bert"], tmp_path / seed / f"out-{seed}", "--quantize"]
        (tmp_path / seed).mkdir()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed})
    first, second = (
        {path.name: hash_file(path) for path in (tmp_path / seed / f"out-{seed}").iterdir()} for seed in ("1", "77")
    )
    assert first == second
    assert len(first) == 6
