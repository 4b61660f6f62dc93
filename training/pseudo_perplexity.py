"""Pseudo-perplexity: how well a model predicts each token of a text from all the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .blocks import Blocks
from .encoders import token_ids
from .masked_forward import MaskedForward
from .masks import IGNORED, MaskedBatch, MaskRule
from .report import exponential
from .scores import score_masks
from .stopping import StopRequest

__all__ = ["PseudoPerplexity"]

_KEY = "pseudo_perplexity"


class PseudoPerplexity(TrainerCallback):
    """The exponential of the mean negative log-likelihood of all tokens, each masked alone (Salazar et al. 2020).

    That of the model before training is kept in the Trainer's log, which a checkpoint contains.

    Args:
        blocks: The text; a block of n tokens takes n passes.
        rule: Names mask token and special tokens; the latter are not predicted.
        batch_size: Passes at once.
        way: How to compute the logits.
        request: Ends the computation when made.
        progress: Show a progress bar on stderr.
    """

    def __init__(
        self,
        blocks: Blocks,
        rule: MaskRule,
        *,
        batch_size: int,
        way: MaskedForward,
        request: StopRequest,
        progress: bool,
    ) -> None:
        self._blocks, self._rule, self._batch_size = blocks, rule, batch_size
        self._way, self._request, self._progress = way, request, progress

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_rest: object,
    ) -> None:
        """Measure the model before training."""
        if state.global_step == 0 and model is not None:
            state.log_history.append({"step": 0, _KEY: self.measure(model)})

    def measure(self, model: PreTrainedModel) -> float:
        """Return the pseudo-perplexity of a model; all processes share the work.

        Raises:
            StoppedError: The request was made.
        """
        total, count = 0.0, 0
        for block in tqdm(self._blocks, desc="Pseudo-perplexity", disable=not self._progress, leave=False):
            batches = list(_each_masked(token_ids(block), self._rule, self._batch_size))
            if batches:
                scores = score_masks(model, batches, way=self._way, request=self._request)
                total += scores.loss * scores.masked_tokens
                count += scores.masked_tokens
        return exponential(total / count)

    @staticmethod
    def before(log: Sequence[dict[str, Any]]) -> float:
        """Return the pseudo-perplexity before training from a Trainer's log.

        Args:
            log: Its `log_history`.
        """
        return next(float(row[_KEY]) for row in log if _KEY in row)


def _each_masked(ids: NDArray[np.int64], rule: MaskRule, batch_size: int) -> Iterator[MaskedBatch]:
    """Yield copies of a block, in each of which another token is masked."""
    positions = np.flatnonzero(~np.isin(ids, rule.special_ids))
    for start in range(0, len(positions), batch_size):
        masked = positions[start : start + batch_size]
        rows = np.arange(len(masked))
        inputs, labels = np.tile(ids, (len(masked), 1)), np.full((len(masked), len(ids)), IGNORED)
        inputs[rows, masked], labels[rows, masked] = rule.mask_id, ids[masked]
        yield {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.ones(inputs.shape, dtype=torch.int64),
            "labels": torch.from_numpy(labels),
        }
