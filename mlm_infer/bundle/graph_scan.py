"""Lists the external files of an ONNX graph from its bytes, before ONNX Runtime opens them.

Hashes do not confine a graph, because its author also wrote them; a graph could name any file on the machine as its
weights. The run time does not depend on onnx, so this module parses the protocol-buffer wire format
(https://protobuf.dev/programming-guides/encoding/) through the ONNX messages (onnx.proto) that can contain a tensor.
It rejects anything that it does not understand.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from mlm_infer.errors import BundleError

__all__ = ["WEIGHTS_ENDINGS", "check_graph", "external_files"]

_HOLDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Field numbers that lead to a tensor, by message. An entry is a key (1) and a value (2) of its external data."""

_DEEPEST = 50

WEIGHTS_ENDINGS = ("_data", ".data")
"""Suffixes that Optimum and torch append to the name of a graph for its weights file."""


def external_files(graph: bytes | mmap.mmap) -> set[str]:
    """Return the names of all external files that contain tensors of a graph.

    Args:
        graph: A serialized ModelProto.

    Raises:
        BundleError: The bytes are not an ONNX graph.
    """
    found: set[str] = set()
    # A stack instead of recursion: the nesting depth is the author's choice. Memory views avoid copies.
    pending = [("model", memoryview(graph), 0)]
    while pending:
        message, data, depth = pending.pop()
        if depth > _DEEPEST:
            raise BundleError(f"its graphs are nested more than {_DEEPEST} deep")
        if message == "entry":
            entry = {number: bytes(value) for number, value in _fields(data)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode("utf-8", "replace"))
            continue
        held = _HOLDS[message]
        pending.extend((held[number], value, depth + 1) for number, value in _fields(data) if number in held)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and content of each length-delimited field; skip other fields."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise BundleError("it is no ONNX graph")
        # Wire types: 2 is length-delimited, 0 a varint, 1 and 5 are fixed widths of 8 and 4 bytes.
        if kind == 2:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise BundleError("it is cut short, or no ONNX graph")
            yield number, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BundleError("it is no ONNX graph")
    if at > len(data):
        raise BundleError("it is cut short, or no ONNX graph")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a varint (seven bits per byte, least significant first) and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise BundleError("it is cut short, or no ONNX graph")


def check_graph(path: Path, weights: str | None) -> None:
    """Reject a graph that refers to any file other than its weights.

    Args:
        path: The graph.
        weights: Path or name of its weights file, in the same folder; None if the graph contains its weights.

    Raises:
        BundleError: It refers to another file, or is not an ONNX graph.
    """
    try:
        with path.open("rb") as stream:
            # Mapped, because a graph that contains its weights may be large.
            graph = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        strange = external_files(graph) - ({Path(weights).name} if weights is not None else set())
    except (BundleError, ValueError) as error:
        reason = error if isinstance(error, BundleError) else "it is empty"
        raise BundleError(f"{path} cannot be read: {reason}; export the model again") from error
    missing = sorted(strange & {path.name + ending for ending in WEIGHTS_ENDINGS})
    if missing and not (path.parent / missing[0]).exists():
        raise BundleError(f"{path} keeps its weights in {missing[0]}, which is not beside it; copy it there")
    if strange:
        raise BundleError(
            f"{path} refers to the external file {min(strange)!r}, which is not allowed; export the model again"
        )
