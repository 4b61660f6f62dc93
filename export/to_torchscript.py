"""Converts a PyTorch checkpoint to TorchScript, with the inputs and outputs of the ONNX serving graph."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mlm_infer.bundle.interface import ENCODER_INPUTS
from mlm_infer.errors import ExportError, first_line
from mlm_infer.shared.masked_rows import head_at_rows
from mlm_infer.shared.quiet import quiet

from .batches import Batch

__all__ = ["TORCHSCRIPT_INPUTS", "torchscript_export"]

TORCHSCRIPT_INPUTS = ENCODER_INPUTS[:2]
"""The encoder's inputs. Token types are omitted, since their default is what every text has: zeros."""

_TRACED_LENGTH = 17


class _LogitsAtRows(torch.nn.Module):
    """The model with its head at selected rows of the last hidden state; this part is traced."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with head_at_rows(self.model, rows):
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits[0]


class _Serving(torch.nn.Module):
    """The outputs of the serving graph; compiled instead of traced, since `k` determines a shape."""

    def __init__(self, logits_at_rows: torch.nn.Module) -> None:
        super().__init__()
        self.logits_at_rows = logits_at_rows

    def forward(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = feeds["mask_positions"].reshape(-1)[feeds["mask_rows"]]
        logits = self.logits_at_rows(feeds["input_ids"], feeds["attention_mask"], rows)
        normalizer = torch.logsumexp(logits, -1, keepdim=True)
        top = torch.topk(logits, int(feeds["k"].item()), -1)
        return {
            "top_ids": top.indices,
            "top_logprobs": top.values - normalizer,
            "candidate_logprobs": torch.gather(logits, 1, feeds["candidates"]) - normalizer,
            "logits": logits,
            "log_normalizer": normalizer,
        }


@torch.no_grad()
def torchscript_export(model: PreTrainedModel, batch: Batch, path: Path) -> None:
    """Trace a model and write it with its weights.

    Args:
        model: A masked language model whose head follows `base_model`.
        batch: Texts of several lengths. A trace of a batch without padding, or with an even length, may contain
            constants that are right for that batch only.
        path: The file to write.

    Raises:
        ExportError: The model cannot be traced.
    """
    ids, mask = (torch.from_numpy(each[:, :_TRACED_LENGTH]) for each in (batch.input_ids, batch.attention_mask))
    # One row per text suffices: tracing records the operations, not the number of rows.
    rows = torch.arange(len(ids)) * ids.shape[1] + 1
    # Suppresses warnings: tracing is deprecated, reads attributes that transformers warns about, and turns some numbers
    # into constants. Whether that changes the answers is measured afterwards, by the comparison with PyTorch.
    with quiet("transformers"):
        try:
            traced = torch.jit.trace(_LogitsAtRows(model), (ids, mask, rows), check_trace=False)
            for module in traced.modules():
                # Containers such as a list of layers have no graph of their own.
                if module._c._has_method("forward"):
                    _follow_device(module.graph)
            torch.jit.save(torch.jit.script(_Serving(traced)), str(path))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ExportError(f"torch could not trace this {model.config.model_type}: {first_line(error)}") from error


def _follow_device(graph: Any) -> None:
    """Replace the device that tracing recorded as a constant by the device of the first input."""
    tensor = next((each for each in graph.inputs() if each.type().kind() == "TensorType"), None)
    for node in graph.findAllNodes("prim::Constant"):
        if node.output().type().kind() == "DeviceObjType" and tensor is not None:
            device = graph.create("prim::device", [tensor], 1)
            device.insertBefore(node)
            device.output().setType(node.output().type())
            node.output().replaceAllUsesWith(device.output())
            node.destroy()
