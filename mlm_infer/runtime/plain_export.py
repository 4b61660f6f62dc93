"""A backend for plain ONNX exports, which compute logits at every position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.errors import BundleError, ModelError

from .best import best_of
from .ort_session import Session

__all__ = ["EveryPosition", "check_ends"]


def check_ends(path: Path, inputs: Mapping[str, Sequence[str | int | None]], outputs: Sequence[str]) -> None:
    """Reject a plain export that needs inputs other than text, or that has no logits.

    Args:
        path: The model file.
        inputs: Shape of each input by name.
        outputs: Names of the outputs.

    Raises:
        ModelError: It is not a masked language model, or needs inputs that cannot be computed from text.
    """
    unsupported = sorted(set(inputs) - {"input_ids", "attention_mask", "token_type_ids"})
    if any(name.startswith("past") for name in unsupported):
        raise ModelError(
            f"{path} takes {unsupported[0]}, the cache of a text-generation model; export a masked "
            "language model (optimum-cli export onnx --task fill-mask)"
        )
    if "input_ids" not in inputs or unsupported:
        raise ModelError(
            f"{path} takes the inputs {', '.join(inputs)}, which cannot be computed from text alone; export it "
            "with no others than input_ids, attention_mask and token_type_ids"
        )
    fixed = [name for name, shape in inputs.items() if any(isinstance(each, int) for each in shape)]
    if fixed:
        raise ModelError(
            f"{path} takes {fixed[0]} of the shape {list(inputs[fixed[0]])} only; export it with dynamic axes, or "
            "from its checkpoint with mlm-export"
        )
    if "logits" not in outputs:
        raise ModelError(
            f"{path} gives {', '.join(outputs)} and no logits, so it is not a masked language model; "
            "export one with its head (optimum-cli export onnx --task fill-mask)"
        )


class EveryPosition:
    """Runs a plain export and derives the outputs of a serving graph from its logits.

    Args:
        path: The model file.
        kind: `cpu` or `cuda`.
        number: Which CUDA device.
        threads: Threads per run, or None.

    Raises:
        ModelError: It is not a masked language model, or needs inputs that cannot be computed from text.
        DependencyError, DeviceError, BundleError: As for `Session`.
    """

    package = "onnxruntime"

    def __init__(self, path: Path, *, kind: str, number: int = 0, threads: int | None = None) -> None:
        self._session = Session(path, kind=kind, number=number, threads=threads, serving=False)
        self._path = path
        self.provider = self._session.provider
        check_ends(path, self._session.inputs, self._session.outputs)

    version = staticmethod(Session.version)
    why_no_cuda = staticmethod(Session.why_no_cuda)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model and compute the outputs of a serving graph from its logits.

        Args:
            outputs: Names of serving-graph outputs to compute.
            feeds: Inputs of a serving graph.

        Returns:
            The outputs in the order asked for.

        Raises:
            BundleError: ONNX Runtime cannot run the model.
        """
        # A third-party graph may or may not have token types; for a single text they are zeros.
        ids = feeds["input_ids"]
        texts = {"token_type_ids": np.zeros_like(ids), **feeds}
        (everywhere,) = self._session.run(["logits"], {name: texts[name] for name in self._session.inputs})
        width = everywhere.shape[-1] if everywhere.ndim == 3 else 0
        if everywhere.shape[:2] != ids.shape or not width or not np.issubdtype(everywhere.dtype, np.floating):
            raise BundleError(
                f"{self._path} gives logits as {everywhere.dtype} {list(everywhere.shape)}, not as floats "
                f"{[*ids.shape, 'vocabulary']}; export it again"
            )
        if feeds["candidates"].max(initial=0) >= width:
            raise BundleError(
                f"{self._path} gives logits for {width} tokens, and its tokenizer has token "
                f"{feeds['candidates'].max()}; take the tokenizer that belongs to it"
            )
        # The two row selections of a serving graph, combined: `mask_rows` index the flat `mask_positions`.
        rows = feeds["mask_positions"].reshape(-1)[feeds["mask_rows"]]
        logits = everywhere.reshape(-1, everywhere.shape[-1])[rows].astype(np.float32)
        # log-sum-exp with the maximum subtracted, so that exp cannot overflow.
        largest = logits.max(axis=1, keepdims=True)
        normalizer = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        found = {"logits": logits, "log_normalizer": normalizer}
        if "top_ids" in outputs:
            everything = np.arange(logits.shape[1])
            best = [best_of(everything, row, int(feeds["k"][0]))[0] for row in logits]
            found["top_ids"] = np.array(best, np.int64).reshape(len(logits), -1)
            found["top_logprobs"] = np.take_along_axis(logits, found["top_ids"], 1) - normalizer
        if "candidate_logprobs" in outputs:
            found["candidate_logprobs"] = np.take_along_axis(logits, feeds["candidates"], 1) - normalizer
        return [found[name] for name in outputs]
