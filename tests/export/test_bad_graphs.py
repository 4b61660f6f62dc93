"""ONNX files that are damaged, unsupported or not masked language models: a one-line error that says what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlm_infer.export import export_bundle
from onnx import TensorProto, helper, numpy_helper

from mlm_infer import BundleError, ModelError
from mlm_infer.errors import ExportError, InputError, MlmInferError


@pytest.fixture(scope="module")
def plain(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a valid plain export."""
    from graph_corpus import write_file

    return write_file(tiny["bert"], "traced", tmp_path_factory.mktemp("plain") / "bert").parent


def on_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Turn a change of a graph into a change of the folder that contains it."""

    def damage(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        onnx.save(model, folder / "model.onnx")

    return damage


def custom_operator(model: onnx.ModelProto) -> None:
    """Use an operator that needs a custom-operator library."""
    node = next(each for each in model.graph.node if each.op_type == "Erf")
    node.op_type, node.domain, node.name = "FastErf", "my.company", "gelu_7"
    model.opset_import.append(helper.make_opsetid("my.company", 1))


def unknown_operator(model: onnx.ModelProto) -> None:
    """Use an operator that does not exist in ONNX."""
    next(each for each in model.graph.node if each.op_type == "Erf").op_type = "Erff"


def no_logits(model: onnx.ModelProto) -> None:
    """Rename the output."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "prediction_scores"
    model.graph.output[0].name = "prediction_scores"


def fixed_shape(model: onnx.ModelProto) -> None:
    """Fix the input shape to one text of 13 tokens."""
    for value in model.graph.input:
        for size, dim in zip((1, 13), value.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size


def baked_batch(model: onnx.ModelProto) -> None:
    """Declare a dynamic batch, but reshape to a batch of one inside the graph."""
    shape = numpy_helper.from_array(np.array([1, -1, 2000]), "one_text")
    model.graph.initializer.append(shape)
    model.graph.node[-1].output[0] = "any"
    model.graph.node.append(helper.make_node("Reshape", ["any", "one_text"], ["logits"]))


def more_inputs(*names: str) -> Callable[[onnx.ModelProto], None]:
    """Add inputs."""

    def change(model: onnx.ModelProto) -> None:
        for name in names:
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence"]))

    return change


def no_tensor(model: onnx.ModelProto) -> None:
    """Declare the attention mask as a sequence instead of a tensor."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, None))
    model.graph.input[1].type.CopyFrom(kind)


def classifier(model: onnx.ModelProto) -> None:
    """Output two logits per text, as a classifier does."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_token"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "two_labels"))
    model.graph.node[-1].output[0] = "any"
    model.graph.node.append(helper.make_node("Gather", ["any", "two_labels"], ["some"], axis=2))
    model.graph.node.append(helper.make_node("ReduceMax", ["some"], ["logits"], axes=[1], keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]))


def tagger(model: onnx.ModelProto) -> None:
    """Output nine logits per token, as a tagger does."""
    model.graph.initializer.append(numpy_helper.from_array(np.arange(9), "nine_labels"))
    model.graph.node[-1].output[0] = "any"
    model.graph.node.append(helper.make_node("Gather", ["any", "nine_labels"], ["logits"], axis=2))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 9]))


def half_named_full(model: onnx.ModelProto) -> None:
    """Convert to fp16 without renaming the file."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model.CopyFrom(convert_float_to_float16(model))


def weights_at(location: str) -> Callable[[Path], None]:
    """Store the weights in an external file, and change the path to it in the graph."""

    def damage(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        onnx.save(graph, folder / "model.onnx")

    return damage


def cut(folder: Path) -> None:
    """Truncate the graph to half its size."""
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])


def cut_weights(folder: Path) -> None:
    """Truncate the external weights to half their size."""
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    whole = (folder / "model.onnx_data").read_bytes()
    (folder / "model.onnx_data").write_bytes(whole[: len(whole) // 2])


def configured(**values: object) -> Callable[[Path], None]:
    """Change the configuration of the model."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


BAD: dict[str, tuple[Callable[[Path], object], type[MlmInferError], str]] = {
    "custom operator": (
        on_graph(custom_operator),
        ModelError,
        r"custom operator my\.company:FastErf \(node 'gelu_7'\).*export it with the operators of ONNX$",
    ),
    "unknown operator": (on_graph(unknown_operator), BundleError, r"cannot load .*model\.onnx.*Erff"),
    "no logits": (on_graph(no_logits), ModelError, r"gives prediction_scores and no logits.*--task fill-mask\)$"),
    "fixed shape": (on_graph(fixed_shape), ModelError, r"input_ids of the shape \[1, 13\] only.*dynamic axes"),
    "baked batch": (on_graph(baked_batch), ModelError, r"logits as float32 \[1, 14, 2000\], not as floats \[2, 7,"),
    "images": (
        on_graph(more_inputs("pixel_values")),
        ModelError,
        r"takes the inputs .*pixel_values, which cannot be computed from text alone; export it with no others than",
    ),
    "a past": (
        on_graph(more_inputs("past_key_values.0.key", "past_key_values.0.value")),
        ModelError,
        r"past_key_values\.0\.key, the cache of a text-generation model.*--task fill-mask\)$",
    ),
    "no tensor": (on_graph(no_tensor), ModelError, r"takes no tensor as attention_mask; export it with"),
    "causal": (
        configured(architectures=["BertLMHeadModel", "LlamaForCausalLM"]),
        ModelError,
        r"is a text-generation model \(LlamaForCausalLM\).*--task fill-mask\)$",
    ),
    "decoder": (configured(is_decoder=True), ModelError, r"text-generation model \(is_decoder in its config.json\)"),
    "classifier": (
        on_graph(classifier),
        ModelError,
        r"logits as float32 \[2, 2\].*so it is not a masked language model",
    ),
    "tagger": (on_graph(tagger), ModelError, r"gives logits for 9 tokens, and its tokenizer has 2000; put the"),
    "fp16 within": (on_graph(half_named_full), InputError, r"is fp16, and nothing else.*choose --precision fp16$"),
    "cut": (cut, BundleError, r"model\.onnx cannot be read: it is cut short"),
    "cut weights": (cut_weights, BundleError, r"cannot load .*model\.onnx"),
    "empty": (lambda folder: (folder / "model.onnx").write_bytes(b""), BundleError, r"it is empty"),
    "text": (
        lambda folder: (folder / "model.onnx").write_text("git-lfs 1"),
        BundleError,
        r"no ONNX graph",
    ),
    "weights elsewhere": (
        weights_at("../weights.bin"),
        BundleError,
        r"refers to the external file '\.\./weights\.bin', which",
    ),
    "weights absolute": (
        weights_at("/etc/passwd"),
        BundleError,
        r"refers to the external file '/etc/passwd', which is not allowed",
    ),
    "weights missing": (
        weights_at("model.onnx.data"),
        BundleError,
        r"model\.onnx keeps its weights in model\.onnx\.data, which is not beside it; copy it there$",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_rejected(what: str, plain: Path, tmp_path: Path) -> None:
    """No bundle is written, and a one-line error names the file, the problem and the remedy."""
    damage, kind, message = BAD[what]
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        export_bundle(str(folder / "model.onnx"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "model" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [on_graph(custom_operator), cut, weights_at("model.onnx.data")])
def test_one_line_at_the_command(damage: Callable[[Path], None], plain: Path, tmp_path: Path) -> None:
    """The command prints no log lines of ONNX Runtime in addition to the error."""
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    damage(folder)
    command = [sys.executable, "-m", "mlm_infer.export", str(folder / "model.onnx"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "loading" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@pytest.mark.parametrize("name", ["normalize", "fusions", "attention", "rows"])
def test_a_pass_that_fails_is_left_out(name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a pass raises or leaves a graph that cannot run, one line says so and the bundle is made without it."""
    from mlm_infer.export import serving

    methods = {"normalize": "normalize", "fusions": "fuse", "attention": "attend", "rows": "move_rows"}

    def spoil(build: serving._Build) -> None:
        if name == "rows":
            raise KeyError("an unknown node")
        reshape = next(node for node in build.model.graph if node.op_type == "Reshape")
        reshape.op_type = "Reshaped"

    monkeypatch.setattr(serving._Build, methods[name], spoil)
    said: list[str] = []
    report = export_bundle(str(plain / "model.onnx"), tmp_path / "out", on_step=said.append)
    (line,) = [line for line in said if "leaving out" in line]
    assert line.startswith(f"leaving out the graph pass {name}, which failed (")
    assert max(case.score_difference for case in report.cases) <= 1e-5


def test_int8_that_fails_is_one_line(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception in the quantization is reported with its type and the alternative."""
    from mlm_infer.export import int8

    def fails(*_: object) -> None:
        raise RuntimeError("Shape mismatch attempting to re-use buffer\nand more")

    monkeypatch.setattr(int8, "make_plan", fails)
    message = r"^quantizing to int8 failed \(RuntimeError: Shape mismatch .* buffer\); export fp32 alone, without int8$"
    with pytest.raises(ExportError, match=message):
        export_bundle(str(plain / "model.onnx"), tmp_path / "out", precisions=["fp32", "int8"])
    assert not (tmp_path / "out").exists()
