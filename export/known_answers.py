"""Records the known answers of a bundle: a few inputs with the answers on this machine."""

from pathlib import Path

from mlm_infer.bundle.manifest import TOKENIZER, TORCHSCRIPT, KnownAnswer, Manifest
from mlm_infer.options import FillOptions
from mlm_infer.runtime.backend import Backend, open_backend
from mlm_infer.runtime.predictor import Predictor
from mlm_infer.tasks.fill import Choice, fill_texts
from mlm_infer.tasks.open_model import OpenModel
from mlm_infer.text.encoder import TextEncoder

__all__ = ["known_answers"]

_REVIEW = (
    "It is one of those films that one likes more with every year : the story is slow , the music is quiet , and "
    "nobody in it says a word too much"
)
_TEXTS = (
    "[MASK]",
    "A [MASK] film.",
    "The [MASK] was good, but the [MASK] was far too long.",
    f"{_REVIEW}, and the [MASK] is the best of it.",
    f"{_REVIEW}. " * 3 + "The [MASK] is the best of it.",
)
_TOP_K = 5


def known_answers(bundle: Path, manifest: Manifest) -> dict[str, tuple[KnownAnswer, ...]]:
    """Run each model of a bundle on the CPU, through the run time.

    Args:
        bundle: The folder.
        manifest: Its manifest, which need not be written yet.

    Returns:
        The answers by the name of the model.
    """
    encoder = TextEncoder(bundle / TOKENIZER, manifest)
    found = {}
    for name in manifest.models:

        def open_again(name: str = name) -> Backend:
            backend, precision = ("torchscript", "auto") if name == TORCHSCRIPT else ("onnx", name)
            return open_backend(
                manifest, bundle, backend=backend, device="cpu", precision=precision, threads=None
            ).session

        found[name] = _answers(OpenModel(encoder, Predictor(open_again(), open_again, manifest, bundle), manifest))
    return found


def _answers(model: OpenModel) -> tuple[KnownAnswer, ...]:
    choice = Choice.of(model, FillOptions(top_k=min(_TOP_K, model.manifest.vocab_size)))
    texts = [text for text in _TEXTS if model.encoder.count(text) <= model.manifest.max_length]
    answers = []
    for text in texts:
        # One by one, as the self-test replays them.
        (result,) = fill_texts(model, [text], choice)
        ids = tuple(tuple(each.token_id for each in mask.predictions) for mask in result.masks)
        logprobs = tuple(tuple(round(each.logprob, 5) for each in mask.predictions) for mask in result.masks)
        # Five decimals are finer than the tolerance of the self-test.
        answers.append(KnownAnswer(text, ids, logprobs))
    return tuple(answers)
