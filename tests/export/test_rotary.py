"""Rotary models are fused, and texts of any lengths together have the logits that PyTorch has for each alone."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mlm_infer.export import export_bundle
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.shared.checkpoint import open_checkpoint
from tests.helpers.architectures import EXPORTED, each

ROTARY = [
    "esm",
    "esmc",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "modernbert",
    "nomic_bert",
    "roformer",
    "ultrabert",
]

LENGTHS = (3, 5, 9, 17, 40, 64)
"""Below and above the window of the tiny ModernBERT, which is four tokens to each side."""


def with_window(checkpoint: Path, folder: Path, tokens: int) -> Path:
    """A copy of a ModernBERT whose local layers see that many tokens."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"local_attention": tokens, "sliding_window": tokens // 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def texts_of(checkpoint: Path) -> list[NDArray[np.int64]]:
    """Random texts with one to three masks each."""
    config = json.loads((checkpoint / "config.json").read_text())
    _, tokenizer, _ = open_checkpoint(str(checkpoint))
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(config["vocab_size"]) if token not in special]
    random = np.random.default_rng(4)
    texts = [random.choice(ordinary, length) for length in LENGTHS]
    for text in texts:
        text[random.choice(len(text), random.integers(1, 4), replace=False)] = tokenizer.mask_token_id
    return texts


def padded(texts: list[NDArray[np.int64]], side: str, padding: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and attention mask of a batch."""
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), padding)
    attention = np.zeros_like(ids)
    for row, text in enumerate(texts):
        places = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, places], attention[row, places] = text, 1
    return ids, attention


def served(bundle: Path, texts: list[NDArray[np.int64]], side: str) -> list[NDArray[np.float32]]:
    """The logits at every token of each text, from one run over all texts."""
    manifest = read_manifest(bundle)
    session = onnxruntime.InferenceSession(bundle / manifest.models["fp32"].file, providers=["CPUExecutionProvider"])
    ids, attention = padded(texts, side, manifest.pad_id)
    found = []
    # Every place of the longest text is asked for; shorter texts repeat theirs.
    for places in np.array_split(np.arange(ids.shape[1]), 5):
        own = [np.flatnonzero(row) for row in attention]
        chosen = np.stack([row[places % len(row)] for row in own])
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": attention,
            "token_type_ids": np.zeros_like(ids),
            "mask_positions": chosen + np.arange(len(ids))[:, None] * ids.shape[1],
            "mask_rows": np.arange(chosen.size),
            "k": np.array([1]),
            "candidates": np.zeros((chosen.size, 0), np.int64),
        }
        names = {each.name for each in session.get_inputs()}
        (logits,) = session.run(["logits"], {name: array for name, array in feeds.items() if name in names})
        found.append(logits.reshape(*chosen.shape, -1))
    everywhere = np.concatenate(found, axis=1)
    return [row[: len(text)] for row, text in zip(everywhere, texts, strict=True)]


@torch.no_grad()
def alone(checkpoint: Path, texts: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
    """The logits of each text alone, of transformers as it is."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    return [model(input_ids=torch.from_numpy(text)[None]).logits[0].numpy() for text in texts]


def check(checkpoint: Path, bundle: Path, sides: Sequence[str] = ("right", "left")) -> onnx.GraphProto:
    """Compare all logits, and return the graph, in which all attention is fused."""
    texts = texts_of(checkpoint)
    expected = alone(checkpoint, texts)
    for side in sides:
        for mine, theirs in zip(served(bundle, texts, side), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())
    graph = onnx.load(bundle / "model.fp32.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MultiHeadAttention") == 2
    assert kinds.count("RotaryEmbedding") == 4
    assert kinds.count("Softmax") == 1, "only that of the vocabulary is left"
    return graph


@pytest.mark.parametrize("name", each(name for name in ROTARY if name in EXPORTED))
def test_logits_are_those_of_each_text_alone(name: str, tiny: dict[str, Path], bundles: dict[str, Path]) -> None:
    """All texts in one batch, padded on the right or left; queries are rotated by the positions of the masks."""
    # The angles of the tiny RoFormer are random, so that a text means something else further on.
    graph = check(tiny[name], bundles[name], ("right",) if name == "roformer" else ("right", "left"))
    made = {output: node for node in graph.node for output in node.output}
    positions = [made[node.input[1]].op_type for node in graph.node if node.op_type == "RotaryEmbedding"]
    biases = [
        len(node.input) > 5 and node.input[5] != "" for node in graph.node if node.op_type == "MultiHeadAttention"
    ]
    windows = {"modernbert": [False, True], "ultrabert": [True, True]}
    assert biases == windows.get(name, [False, False])
    # With a window, the last layer runs at all tokens.
    assert sorted(positions) == ["Expand"] * 4 if biases[1] else ["Expand"] * 3 + ["Gather"]


@pytest.mark.parametrize("tokens", [2, 40, 128])
def test_windows(tokens: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Of one token to each side, of more than some texts, and of more than any."""
    model = with_window(tiny["modernbert"], tmp_path / "model", tokens)
    export_bundle(str(model), tmp_path / "bundle")
    check(model, tmp_path / "bundle")


def test_queries_of_a_packed_projection_are_computed_at_the_masks(tiny: dict[str, Path], tmp_path: Path) -> None:
    """ModernBERT's layer for queries, keys and values becomes three, of which the last queries need only some rows."""
    model = shutil.copytree(tiny["modernbert"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"global_attn_every_n_layers": 1}
    config.pop("layer_types", None)
    (model / "config.json").write_text(json.dumps(config))
    export_bundle(str(model), tmp_path / "bundle")
    graph = check(model, tmp_path / "bundle")
    made = {output: node for node in graph.node for output in node.output}
    last = [node for node in graph.node if node.op_type == "MultiHeadAttention"][-1]
    query, key = (made[made[name].input[0]] for name in last.input[:2])
    assert made[query.input[0]].op_type == "Gather"
    assert made[key.input[0]].op_type == "LayerNormalization"


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_esm_does_not_count_padding(side: str, tiny: dict[str, Path]) -> None:
    """Neither does a checkpoint that is opened for training or export, whichever transformers is installed."""
    texts = texts_of(tiny["esm"])
    model, tokenizer, _ = open_checkpoint(str(tiny["esm"]))
    assert tokenizer.pad_token_id is not None
    ids, attention = padded(texts, side, tokenizer.pad_token_id)
    logits = model.eval()(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(attention)).logits.numpy()
    for row, theirs in enumerate(alone(tiny["esm"], texts)):
        np.testing.assert_allclose(logits[row, attention[row] == 1], theirs, atol=1e-4 * np.abs(theirs).max())
