"""Fills the masks of a user's sentences at each evaluation, to show what the training changes."""

import re
from collections.abc import Sequence

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mlm_infer.errors import InputError
from mlm_infer.shared.checkpoint import max_length
from mlm_infer.shared.masked_rows import masked_logits

from .report import Fill

__all__ = ["PromptFiller", "fills_of"]

_TOP = 5
_MASKS = re.compile(r"\[MASK\]|<mask>")


class PromptFiller(TrainerCallback):
    """Fills masks at each evaluation and keeps the predictions in the Trainer's log, which a checkpoint contains.

    Args:
        prompts: Sentences with `[MASK]` or `<mask>`, whatever the model's own mask token is.
        model: The model, for its maximum length.
        tokenizer: Its tokenizer.

    Raises:
        InputError: A sentence has no mask or is too long.
    """

    def __init__(self, prompts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoded: dict[str, torch.Tensor] = {}
        longest = max_length(model, tokenizer.model_max_length)
        for number, text in enumerate(prompts, 1):
            ids = tokenizer(_MASKS.sub(tokenizer.mask_token, text), return_tensors="pt")["input_ids"]
            if not (ids == tokenizer.mask_token_id).any():
                raise InputError(f"prompt {number} has no mask: {text!r}; write [MASK] in place of a token")
            if ids.shape[1] > longest:
                raise InputError(f"prompt {number} has {ids.shape[1]} tokens, but the model takes at most {longest}")
            self._encoded[text] = ids

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_rest: object,
    ) -> None:
        """Fill the masks of all sentences."""
        if self._encoded and model is not None and state.is_world_process_zero:
            fills = {text: self._fill(model, ids) for text, ids in self._encoded.items()}
            state.log_history.append({"step": state.global_step, "fills": fills})

    @torch.no_grad()
    def _fill(self, model: PreTrainedModel, ids: torch.Tensor) -> list[list[tuple[str, float]]]:
        training = model.training
        model.eval()
        ids = ids.to(model.device)
        rows = (ids[0] == self._tokenizer.mask_token_id).nonzero().squeeze(1)
        logits = masked_logits(model, ids, torch.ones_like(ids), rows, fast=False)
        model.train(training)
        best = logits.float().softmax(-1).topk(min(_TOP, logits.shape[-1]))
        return [
            [(self._tokenizer.decode([token]).strip(), share) for token, share in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def fills_of(log: Sequence[dict[str, object]]) -> tuple[Fill, ...]:
    """Return the predictions that a Trainer's log contains, each once."""
    found = {}
    for row in log:
        fills = row.get("fills")
        if isinstance(fills, dict):
            for text, masks in fills.items():
                predictions = tuple(tuple((token, share) for token, share in each) for each in masks)
                found[row["step"], text] = Fill(int(str(row["step"])), text, predictions)
    return tuple(found.values())
