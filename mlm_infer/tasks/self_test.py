"""The known-answer test of a bundle: replays answers that were recorded at the export."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mlm_infer.bundle.manifest import KnownAnswer
from mlm_infer.errors import BundleError, InputError

__all__ = ["check_answers"]

_EXACT = 1e-3
_ROUNDED = 0.25
"""Maximum difference of a log-probability: for fp32 on a CPU, and for anything that rounds more."""


def check_answers(
    path: Path,
    precision: str,
    answers: Sequence[KnownAnswer],
    logprobs_of: Callable[[str, list[int]], list[dict[int, float]]],
    *,
    exact: bool,
) -> None:
    """Replay known answers and compare the log-probabilities of the recorded tokens.

    Args:
        path: The bundle, for messages.
        precision: Precision of the model, for messages.
        answers: The recorded answers.
        logprobs_of: Returns, for a text and token ids, the log-probability of each id at each mask.
        exact: Whether the model is fp32 on a CPU, which rounds least.

    Raises:
        BundleError: There are no known answers, or one cannot be reproduced.
    """
    if not answers:
        raise BundleError(f"{path} holds no known answers for {precision}; export the model again")
    limit = _EXACT if exact else _ROUNDED
    for answer in answers:
        try:
            # Looked up by token, not by rank: rounding may swap tokens of nearly equal probability.
            found = logprobs_of(answer.text, sorted({token for row in answer.ids for token in row}))
        except InputError as error:
            raise BundleError(f"{path}: its known answers cannot be replayed: {error}") from error
        if len(found) != len(answer.ids):
            raise BundleError(f"{path}: {answer.text!r} has {len(answer.ids)} masks, here {len(found)}")
        for ids, logprobs, here in zip(answer.ids, answer.logprobs, found, strict=True):
            for token, expected in zip(ids, logprobs, strict=True):
                # Negated, so that NaN fails.
                if not abs(here[token] - expected) <= limit:
                    raise BundleError(
                        f"{path} ({precision}) gives wrong answers on this machine: token {token} in "
                        f"{answer.text[-50:]!r} must have log-probability {expected:.4f} (within {limit:g}), "
                        f"but has {here[token]:.4f}"
                    )
