"""The accuracy that int8 and fp16 may cost."""

from dataclasses import dataclass

from mlm_infer.errors import InputError

__all__ = ["Budget"]

_FLAT = 100.0
"""Perplexity above which the probabilities of the top tokens are so close that less agreement is required."""

_AGREEMENT, _FLAT_AGREEMENT = 0.983, 0.963
"""0.3 % more than the documented 98 % and 96 %, since other text differs from the held-out text."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The accuracy budget of int8 and fp16, measured on text that calibration did not see.

    Attributes:
        max_perplexity_increase: Maximum relative increase over fp32; 0.01 is one percent.
        min_agreement: Minimum top-1 agreement with fp32; None for 98.3 %, or 96.3 % if the model's perplexity is above
            100, where the probabilities of the top tokens are close together.
        strict: Raise an error instead of using anything but int8 for a layer; fp16 has no alternative anyway.
    """

    max_perplexity_increase: float = 0.01
    min_agreement: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.max_perplexity_increase >= 0:
            raise InputError(f"max_perplexity_increase is {self.max_perplexity_increase}; it must be 0 or more")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement is {self.min_agreement}; it must be from 0 to 1")

    def agreement(self, perplexity: float) -> float:
        """Return the minimum top-1 agreement for a model of this perplexity."""
        if self.min_agreement is not None:
            return self.min_agreement
        return _AGREEMENT if perplexity <= _FLAT else _FLAT_AGREEMENT

    def met(self, perplexity: float, exact_perplexity: float, agreement: float) -> bool:
        """Return whether a model meets the budget."""
        # A model that quantization happens to improve has a negative increase, which is within any budget.
        increase = perplexity / exact_perplexity - 1
        return increase <= self.max_perplexity_increase and agreement >= self.agreement(exact_perplexity)

    def nearness(self, perplexity: float, exact_perplexity: float, agreement: float) -> str:
        """Return a description of the measurements and limits."""
        return (
            f"perplexity {perplexity / exact_perplexity - 1:+.2%} (at most {self.max_perplexity_increase:+.2%}), "
            f"top-1 agreement {agreement:.1%} (at least {self.agreement(exact_perplexity):.1%})"
        )
