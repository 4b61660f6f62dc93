"""The errors this package raises. Each message says what went wrong, with which value, and what to do."""

__all__ = [
    "BundleError",
    "DataError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "InputError",
    "MlmInferError",
    "ModelError",
    "OutputExistsError",
    "TextError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """Return the first line of what another library says, or the kind of its error where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class MlmInferError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1
    """What a command of this package exits with: 2 for wrong usage, 1 for the rest."""

    def __str__(self) -> str:
        # One line, whatever line breaks a name or a text in it has.
        return " ".join(super().__str__().splitlines())


class InputError(MlmInferError, ValueError):
    """A wrong argument, or a text that cannot be filled. A ValueError, as in the transformers pipeline."""

    exit_code = 2


class TextError(InputError):
    """A text that cannot be used, among others perhaps.

    Args:
        subject: Which text it is, such as `the text` or `text 3 of 5`.
        problem: What is wrong with it.

    Attributes:
        subject: As given; the message is the two together.
        problem: As given.
    """

    def __init__(self, subject: str, problem: str) -> None:
        # Both arguments go to the base, so that the error can be pickled.
        super().__init__(subject, problem)
        self.subject, self.problem = subject, problem

    def __str__(self) -> str:
        return " ".join(f"{self.subject} {self.problem}".splitlines())

    def named(self, subject: str) -> "TextError":
        """Return the same error under another name for the text, such as a file and a line of it."""
        return TextError(subject, self.problem)


class OutputExistsError(MlmInferError, FileExistsError):
    """The output folder exists and overwriting it was not asked for."""

    exit_code = 2


class BundleError(MlmInferError):
    """A bundle that is missing, incomplete or damaged."""


class DataError(MlmInferError, ValueError):
    """A data set that cannot be read, or that holds nothing to use."""


class DependencyError(MlmInferError, ImportError):
    """A package that this call needs is not installed."""


class DeviceError(MlmInferError, RuntimeError):
    """The device that was asked for cannot be used."""


class ModelError(MlmInferError, ValueError):
    """A checkpoint that is not a usable masked language model."""


class ExportError(MlmInferError, RuntimeError):
    """An export that failed, or whose answers differ from those of PyTorch."""
