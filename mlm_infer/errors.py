"""The exceptions of this package. Each message says what went wrong, with which value, and what to do."""

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
    "TrainingError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the name of its class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class MlmInferError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1
    """Exit status of a command: 2 for wrong usage, 1 otherwise."""

    def __str__(self) -> str:
        # One line, whatever line breaks a name or a text in it has.
        return " ".join(super().__str__().splitlines())


class InputError(MlmInferError, ValueError):
    """An invalid argument or text. A ValueError, as in the transformers pipeline."""

    exit_code = 2


class TextError(InputError):
    """An invalid text, possibly one of several.

    Args:
        subject: Which text it is, such as `the text` or `text 3 of 5`.
        problem: What is wrong with it.

    Attributes:
        subject: As given; the message consists of subject and problem.
        problem: As given.
    """

    def __init__(self, subject: str, problem: str) -> None:
        # The base class needs both arguments so that the error can be pickled.
        super().__init__(subject, problem)
        self.subject, self.problem = subject, problem

    def __str__(self) -> str:
        return " ".join(f"{self.subject} {self.problem}".splitlines())

    def named(self, subject: str) -> "TextError":
        """Return the same error with another name for the text, such as file and line."""
        return TextError(subject, self.problem)


class OutputExistsError(MlmInferError, FileExistsError):
    """The output exists and overwriting was not requested."""

    exit_code = 2


class BundleError(MlmInferError):
    """A bundle that is missing, incomplete or damaged."""


class DataError(MlmInferError, ValueError):
    """A data set that cannot be read, or that has no usable content."""


class DependencyError(MlmInferError, ImportError):
    """A package that this call needs is not installed."""


class DeviceError(MlmInferError, RuntimeError):
    """The requested device cannot be used."""


class ModelError(MlmInferError, ValueError):
    """A checkpoint that is not a usable masked language model."""


class TrainingError(MlmInferError, RuntimeError):
    """A training that had to stop, such as for a loss that is not finite."""


class ExportError(MlmInferError, RuntimeError):
    """An export that failed, or whose answers differ from PyTorch's."""
