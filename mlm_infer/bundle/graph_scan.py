"""Which files an ONNX graph asks for, read off its bytes before ONNX Runtime opens them.

The run time does not import onnx, and hashes cannot confine a graph: who wrote the graph wrote them too. This
follows the wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding/) through the
messages of ONNX (onnx.proto) that can hold a tensor, and refuses what it does not understand.
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
"""Fields by number that lead to a tensor; an entry is a key (1) and a value (2) that say where its data lies."""

_DEEPEST = 50

WEIGHTS_ENDINGS = ("_data", ".data")
"""What the name of a weights file has behind that of its graph, as Optimum and as torch write it."""


def external_files(graph: bytes | mmap.mmap) -> set[str]:
    """Return the names of all files that the tensors of a graph lie in.

    Args:
        graph: A serialized ModelProto.

    Raises:
        BundleError: The bytes are no ONNX graph.
    """
    found: set[str] = set()
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
    """Yield number and bytes of each field that has a length; step over the others."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise BundleError("it is no ONNX graph")
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
    """Return a number of seven bits a byte, the least first, and where it ends."""
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
    """Refuse a graph that asks for any file but its weights.

    Args:
        path: The graph.
        weights: Path or name of its weights file, which lies beside it; None if it holds them itself.

    Raises:
        BundleError: It asks for another file, or is no ONNX graph.
    """
    try:
        with path.open("rb") as stream:
            # One that holds its weights itself may be large.
            graph = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        strange = external_files(graph) - ({Path(weights).name} if weights is not None else set())
    except (BundleError, ValueError) as error:
        reason = error if isinstance(error, BundleError) else "it is empty"
        raise BundleError(f"{path} cannot be read: {reason}; export the model again") from error
    missing = sorted(strange & {path.name + ending for ending in WEIGHTS_ENDINGS})
    if missing and not (path.parent / missing[0]).exists():
        raise BundleError(f"{path} keeps its weights in {missing[0]}, which is not beside it; copy it there")
    if strange:
        raise BundleError(f"{path} asks for the file {min(strange)!r}, which it may not; export the model again")
