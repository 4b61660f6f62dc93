"""Hostile bundles. Their hashes match, since whoever makes a bundle also writes its hashes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.bundle.manifest import hash_file
from tests.helpers.paths import SHIPPED

__all__ = ["edit", "reseal", "torchscript_only", "with_graph", "with_tokenizer"]


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest."""
    path = bundle / "mlm_infer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def reseal(bundle: Path, name: str) -> None:
    """Update the manifest with the hash of a changed file, as an attacker would."""
    stored = hash_file(bundle / name)
    edit(bundle, lambda values: values["files"].update({name: {"bytes": stored.bytes, "sha256": stored.sha256}}))


def torchscript_only(folder: Path, written: Path) -> Path:
    """Make a bundle with a TorchScript file only, which writes a file when it is loaded."""
    import torch

    class Attack(torch.nn.Module):
        path: str

        def __init__(self) -> None:
            super().__init__()
            self.path = str(written)

        def forward(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return feeds

        @torch.jit.export
        def __getstate__(self) -> tuple[str, bool]:
            return self.path, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]) -> None:
            self.path = state[0]
            self.training = state[1]
            torch.ops.aten.save(torch.zeros(1), state[0])

    shutil.copytree(SHIPPED, folder)
    for name in ("model.int8.onnx", "model.int8.weights"):
        (folder / name).unlink()
    torch.jit.save(torch.jit.script(Attack()), str(folder / "model.torchscript.pt"))
    written.unlink(missing_ok=True)

    def change(values: dict[str, Any]) -> None:
        values["models"] = {"torchscript": {"file": "model.torchscript.pt", "details": {}}}
        values["files"] = {"tokenizer.json": values["files"]["tokenizer.json"]}
        values["known_answers"] = {}
        stored = hash_file(folder / "model.torchscript.pt")
        values["files"]["model.torchscript.pt"] = {"bytes": stored.bytes, "sha256": stored.sha256}

    edit(folder, change)
    return folder


def with_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy the shipped bundle with another tokenizer."""
    shutil.copytree(SHIPPED, folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    reseal(folder, "tokenizer.json")
    return folder


def with_graph(folder: Path, replaced: dict[str, NDArray[Any]], *, good_length: float = 1e6) -> Path:
    """Make a bundle whose graph gives every token a probability of one half.

    Args:
        folder: Where to write it.
        replaced: Outputs that are constants instead.
        good_length: Texts with more tokens get NaN.
    """
    import onnx

    shutil.copytree(SHIPPED, folder)
    (folder / "model.int8.weights").unlink()
    width = json.loads((folder / "mlm_infer.json").read_text(encoding="utf-8"))["vocab_size"]
    onnx.save(_half_graph(width, replaced, good_length), folder / "model.int8.onnx")
    edit(folder, lambda values: values["files"].pop("model.int8.weights"))
    edit(folder, lambda values: values["models"]["int8"].update(weights=None))
    reseal(folder, "model.int8.onnx")
    return folder


def _half_graph(width: int, replaced: dict[str, NDArray[Any]], good_length: float) -> Any:
    """Return the ONNX model that `with_graph` describes, with `width` tokens in the vocabulary."""
    from onnx import TensorProto, helper, numpy_helper

    given = ("input_ids", "attention_mask", "token_type_ids", "mask_positions", "candidates")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [None, None]) for name in given]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("mask_rows", "k")]
    constants = {
        "width": np.array([width]),
        "token": np.array(1000),
        "half": np.array(np.log(0.5), np.float32),
        "good": np.array(good_length, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["input_ids"], ["texts_length"]),
        node("Gather", ["texts_length", "one"], ["length"]),
        node("Cast", ["length"], ["length_float"], to=TensorProto.FLOAT),
        node("Sub", ["good", "length_float"], ["room"]),
        # The root of a number below zero is NaN.
        node("Sqrt", ["room"], ["root"]),
        node("Mul", ["root", "zero"], ["nothing"]),
        node("Add", ["half", "nothing"], ["value"]),
        node("Shape", ["mask_rows"], ["rows"]),
        node("Shape", ["candidates"], ["asked"]),
        node("Concat", ["rows", "k"], ["best"], axis=0),
        node("Concat", ["rows", "width"], ["all"], axis=0),
    ]
    outputs = {
        "top_ids": ("token", "best", TensorProto.INT64),
        "top_logprobs": ("value", "best", TensorProto.FLOAT),
        "candidate_logprobs": ("value", "asked", TensorProto.FLOAT),
        "logits": ("value", "all", TensorProto.FLOAT),
    }
    infos = []
    for name, (value, shape, kind) in outputs.items():
        if name in replaced:
            nodes.append(node("Constant", [], [name], value=numpy_helper.from_array(replaced[name])))
            kind = helper.np_dtype_to_tensor_dtype(replaced[name].dtype)
        else:
            nodes.append(node("Expand", [value, shape], [name]))
        infos.append(helper.make_tensor_value_info(name, kind, None))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "own", inputs, infos, tensors)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
