"""`MaskFiller`: checks arguments and delegates to `tasks`. Long because every public method is documented in place."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack, get_args, overload

import numpy as np

from .bundle.manifest import TOKENIZER, TORCHSCRIPT, ForeignManifest, Manifest, unchanged
from .bundle.read_manifest import read_manifest
from .checks import check_choice, check_flag, shown, whole_number
from .errors import BundleError, InputError
from .locate.find import locate, shipped_model
from .options import FillKeywords, FillOptions, fill_options
from .results import FillerInfo, FillResult, Infilling, RankResult, ScoreResult
from .runtime.backend import Opened, open_backend
from .runtime.cpu import cpu_kind
from .runtime.forks import no_forks
from .runtime.predictor import Predictor
from .tasks.columns import Column, fill_columns, texts_of
from .tasks.fill import Choice, OnError, check_top_k, fill_stream, fill_texts
from .tasks.infill import Order, expand_spans, infill_text
from .tasks.open_model import OpenModel
from .tasks.pipeline import answer_as_pipeline
from .tasks.rank import Others, candidate_lists, rank_candidates
from .tasks.score import ScoreMethod, score_texts, whole_texts
from .tasks.self_test import check_answers
from .text.encoded_text import EncodedText
from .text.encoder import LongText, TextEncoder, check_long_text
from .text.vocabulary import Restriction

__all__ = ["MaskFiller", "open_named"]

logger = logging.getLogger(__name__)

# Limits far beyond any use: each beam is a row of a batch, and ONNX Runtime allocates a stack per thread.
_WIDEST_BEAM = 100
_MOST_THREADS = 1024


class MaskFiller:
    """Fills masks with a model that `mlm-export` wrote, without torch.

    Thread-safe. It can be pickled, and works in a forked process, where it opens the model again.

    Args:
        model: Folder of a bundle; None opens the small English model that ships with the package. Also accepts
            third-party models: a folder with a plain ONNX export (`model.onnx`, `onnx/model.onnx`,
            `model_quantized.onnx`) or such a file, which runs as it is; a checkpoint; or a Hub id of any of these.
            With the extra [export] installed, plain exports and checkpoints are converted to bundles on first use
            and cached in `MLM_INFER_CACHE`, by default `mlm-infer` in the user's cache folder.
        device: `auto` (CUDA if available, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (the fastest one in the bundle for the device), `fp32`, `fp16` or `int8`; with OpenVINO also
            `bf16`, computed from fp32 on processors that have it.
        threads: Threads per run; None uses all processors available to this process. For TorchScript this sets the
            thread count of the whole process, and None leaves it unchanged.
        backend: `auto` (ONNX Runtime), `onnx`, `openvino` or `torchscript`. A TorchScript file is code that runs when
            it is opened.
        self_test: Replay the known answers of the bundle, to check that this machine reproduces the answers recorded
            at the export.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Do not download anything, as with the environment variable `HF_HUB_OFFLINE`.

    Raises:
        InputError: An argument is invalid, or the bundle lacks that precision or backend.
        BundleError: The bundle is missing, incomplete or damaged, its recorded answers cannot be reproduced, or the Hub
            or the cache folder cannot be used.
        ModelError: It is not a masked language model.
        DeviceError: The device cannot be used.
        DependencyError: The backend (ONNX Runtime or torch) is not installed, or [export] for a checkpoint.
        ExportError: The checkpoint cannot be exported.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        self_test: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        if threads is not None:
            threads = whole_number("threads", threads, least=1, most=_MOST_THREADS, rest=", or None for all")
        for name, value in (("device", device), ("precision", precision), ("backend", backend)):
            if not isinstance(value, str):
                raise InputError(f"{name} is {shown(value)}; give a string such as 'auto'")
        if model is None:
            folder = shipped_model()
            manifest = read_manifest(folder)
        else:
            folder, manifest = locate(
                model, precision=precision, backend=backend, revision=revision, local_files_only=local_files_only
            )
        # The file is verified and then opened by name: it must be the same file both times.
        with unchanged(folder, [TOKENIZER]):
            encoder = TextEncoder(manifest.check_file(folder, TOKENIZER), manifest)

        open_here = partial(
            open_backend, manifest, backend=backend, device=device, precision=precision, threads=threads
        )
        # A fork while a session is being created would leave the child a half-initialized library.
        with no_forks():
            opened = open_here(folder)
        # Absolute: a forked process may have changed its working folder when it opens the model again.
        place = folder.absolute()
        predictor = Predictor(opened.session, lambda: open_here(place).session, manifest, folder)
        # Fail now rather than in the first request if the graph does not match its manifest.
        try:
            predictor.check(encoder.encode([manifest.mask_token])[0])
        except InputError as error:
            raise BundleError(f"{folder}: its tokenizer does not read its own mask: {error}") from error
        self.model = OpenModel(encoder, predictor, manifest)
        self.info = _info(folder, manifest, opened)
        # Unpickling opens the same model: for a plain export the file that was selected, not its folder, and for a
        # checkpoint or Hub id the bundle it became.
        plain = isinstance(manifest, ForeignManifest)
        again = None if model is None else place / manifest.models[opened.name].file if plain else place
        self._arguments = (again, device, precision, threads, backend, manifest.content(folder))
        if self_test:
            # Only fp32 on a CPU computes nearly the same numbers on every machine; the others get a wider tolerance.
            exact = self.info.precision == "fp32" and "cuda" not in self.info.provider.lower()
            answers = manifest.known_answers.get(opened.name, ())
            check_answers(folder, self.info.precision, answers, self._logprobs_of, exact=exact)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, the options and a hash of the model; the receiving process opens the model itself.

        `datasets` hashes the pickle to find cached answers, and must not take those of another model of the same path.
        """
        return _reopen, self._arguments

    def _logprobs_of(self, text: str, ids: list[int]) -> list[dict[int, float]]:
        """Return, for each mask of a text, the log-probabilities of the given token ids."""
        encoded = self._one_with_masks(text)
        wanted = [np.array(ids, np.int64)] * len(encoded.positions)
        (found,) = self.model.predictor.candidates([encoded], [wanted])
        return [dict(zip(ids, row.tolist(), strict=True)) for row in found]

    def __repr__(self) -> str:
        return (
            f"MaskFiller({str(self.info.path)!r}, precision={self.info.precision!r}, provider={self.info.provider!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the model. Later calls raise InputError; running ones finish."""
        # With the attribute gone, __getattr__ answers every later use with a clear error; popping is atomic.
        model = self.__dict__.pop("model", None)
        if model is not None:
            model.predictor.close()

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise InputError("this MaskFiller is closed; open a new one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in a text, special tokens included; `info.max_length` is the maximum.

        Args:
            text: Any text, with or without a mask.
        """
        return self.model.encoder.count(text)

    def fill(
        self,
        text: str,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        words_only: bool = False,
        pattern: str | re.Pattern[str] | None = None,
        min_score: float = 0.0,
        renormalize: bool = False,
        long_text: LongText = "error",
    ) -> FillResult:
        """Fill the masks of one text, each independently of the others.

        Args:
            text: A text with one or more masks, written as `[MASK]`, `<mask>` or the model's own mask token.
            top_k: Maximum number of predictions per mask.
            targets: Predict only these words, each of which must be one token; with or without a leading space. Text
                without a token in the vocabulary (an emoji, in most English models) is an error.
            allow: Permitted words; words that are not a single token are ignored.
            deny: Excluded words.
            words_only: Exclude special tokens, punctuation, numbers and tokens that continue a word.
            pattern: Regular expression that must match the whole word.
            min_score: Minimum probability of a prediction, from 0 to 1; there may be fewer than `top_k`.
            renormalize: Normalize the scores over the permitted tokens instead of the whole vocabulary.
            long_text: `error`, or `window` to predict each mask from the window around it if the text has more
                tokens than the model accepts; `MaskResult.window` gives the window.

        Returns:
            One result per mask; scores are probabilities, `logprob` their natural logarithm.

        Raises:
            InputError: The text or an argument is invalid.
        """
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string, or a list to fill_batch")
        options = FillOptions(
            top_k=top_k,
            targets=targets,
            allow=allow,
            deny=deny,
            words_only=words_only,
            pattern=pattern,
            min_score=min_score,
            renormalize=renormalize,
            long_text=long_text,
        )
        return fill_texts(self.model, [text], Choice.of(self.model, options))[0]

    def fill_batch(
        self,
        texts: Sequence[str] | Column,
        **options: Unpack[FillKeywords],
    ) -> list[FillResult]:
        """Fill the masks of many texts; texts of similar length share runs of the model.

        Args:
            texts: The texts, as for `fill`: a list, or a column of numpy, pandas, polars or pyarrow.
            **options: As for `fill`.

        Returns:
            One result per text, in the given order; an empty list for no texts.

        Raises:
            InputError: A text or an argument is invalid; the message says which.
        """
        rows = texts_of(texts)
        if rows is None:
            raise InputError(f"texts is a {type(texts).__name__}; give a list of strings, or one string to fill")
        choice = Choice.of(self.model, fill_options(options))
        return fill_texts(self.model, rows, choice)

    def map_batch(self, batch: Mapping[str, Any], *, column: str = "text", **options: Unpack[FillKeywords]) -> Any:
        """Fill the masks of a column of a table: the function for `datasets.Dataset.map(..., batched=True)`.

        A row that cannot be filled gets an error in place of an answer, and the other rows are filled.

        Args:
            batch: A dictionary of columns (lists, or columns of numpy, pandas, polars or pyarrow), or a pyarrow Table.
            column: The column of the texts.
            **options: As for `fill`.

        Returns:
            Two columns, with a value for each row. `masks` is a list of dictionaries with the fields of `MaskResult`,
            and `error` a line of text; one of them is None. They have the same Arrow types in every batch, those of the
            .parquet files of `mlm-fill`. For a Table, it is the table with these columns.

        Raises:
            InputError: There is no such column, or an argument is invalid.
        """
        return fill_columns(self.model, batch, column, Choice.of(self.model, fill_options(options)))

    @overload
    def fill_stream(
        self,
        texts: Iterable[str],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[FillKeywords],
    ) -> Iterator[FillResult]: ...

    @overload
    def fill_stream(
        self,
        texts: Iterable[str],
        *,
        on_error: OnError,
        **options: Unpack[FillKeywords],
    ) -> Iterator[FillResult | InputError]: ...

    def fill_stream(
        self,
        texts: Iterable[str],
        *,
        on_error: OnError = "raise",
        **options: Unpack[FillKeywords],
    ) -> Iterator[FillResult] | Iterator[FillResult | InputError]:
        """Fill the texts of an iterator of any length, in bounded memory.

        Args:
            texts: The texts; the iterator is read ahead by at most 512 texts or two million characters. An exception
                from it is raised after the results of all earlier texts.
            on_error: `raise`, or `return` to yield the error of a text, with its number, in place of its result.
            **options: As for `fill`.

        Returns:
            An iterator over one result per text, in the given order. Arguments are checked immediately.

        Raises:
            InputError: An argument is invalid.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InputError(f"texts is a {type(texts).__name__}; give an iterable of strings")
        check_choice("on_error", on_error, get_args(OnError))
        choice = Choice.of(self.model, fill_options(options))
        return fill_stream(self.model, iter(texts), choice, on_error)

    def rank(
        self,
        text: str,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        others: Others = "left_to_right",
        normalize: bool = False,
    ) -> RankResult:
        """Rank words or phrases of any number of tokens as fillings of a mask.

        A candidate of n tokens replaces the mask by n tokens and is scored by the sum of their log-probabilities.
        `others` sets which other tokens of the candidate are visible when one token is scored:

        * `left_to_right`: those before it; those after it are masked. By the chain rule the result is a probability
          distribution over all candidates of the same length (as within words in Kauf and Ivanova 2023).
        * `masked`: none. The cheapest: one run of the model per candidate length.
        * `visible`: all (Salazar et al. 2020). Favours candidates whose tokens predict each other.

        Args:
            text: A text with masks; while one mask is ranked, the others stay masked.
            candidates: Words or phrases; for several masks, one list per mask. A candidate with text that has no token
                in the vocabulary is an error, since all such text would get the same score.
            others: See above.
            normalize: Rank by the mean log-probability per token, which penalizes long candidates less.

        Returns:
            The candidates of each mask, best first, including duplicates.

        Raises:
            InputError: The text or a candidate is invalid, or the number of lists is not the number of masks.
        """
        encoded = self._one_with_masks(text)
        lists = candidate_lists(candidates, len(encoded.positions))
        check_choice("others", others, get_args(Others))
        check_flag("normalize", normalize)
        return rank_candidates(self.model, encoded, lists, others=others, normalize=normalize)

    def infill(
        self,
        text: str,
        *,
        top_k: int = 5,
        beam_size: int = 5,
        order: Order = "confidence",
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        words_only: bool = False,
    ) -> list[Infilling]:
        """Fill all masks of a text jointly, each conditioned on those filled before it.

        A beam search: each step fills one mask of every kept text with its top-k tokens and keeps the best of the
        resulting texts. `[MASK:3]` stands for three consecutive masks, `[MASK:1-4]` for one to four. Each length is
        searched; fillings of different lengths are compared by the mean log-probability per token.

        Args:
            text: A text with masks and spans.
            top_k: Maximum number of fillings to return; there are at most `beam_size` for each combination of lengths,
                and with a single mask as many as `fill` would return.
            beam_size: Number of partial fillings to keep; 1 is a greedy search.
            order: Which mask to fill next: `confidence`, the one with the most probable top-1 prediction, or
                `left_to_right`.
            allow: Permitted words, as for `fill`.
            deny: Excluded words.
            words_only: Whole words only, as for `fill`.

        Returns:
            The fillings found, best first.

        Raises:
            InputError: The text or an argument is invalid.
        """
        top_k = check_top_k(self.model, top_k)
        beam_size = whole_number("beam_size", beam_size, least=1, most=_WIDEST_BEAM)
        check_choice("order", order, get_args(Order))
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string")
        # One text per combination of span lengths; each is searched on its own, and the best of all are returned.
        expanded = expand_spans(text, self.model.manifest.mask_token)
        parts = [(self._one_with_masks(plain), spans, counts) for plain, spans, counts in expanded]
        return infill_text(
            self.model,
            text,
            parts,
            top_k=top_k,
            beam_size=beam_size,
            order=order,
            restriction=Restriction.of(None, allow, deny, words_only, None),
        )

    def score(
        self, texts: Sequence[str] | Column, *, method: ScoreMethod = "pll", long_text: LongText = "error"
    ) -> list[ScoreResult]:
        """Score complete texts by their pseudo-log-likelihood: the sum over tokens of log p(token | all others).

        Args:
            texts: Texts without masks: a list, or a column of numpy, pandas, polars or pyarrow.
            method: `pll` masks one token at a time (Salazar et al. 2020); `pll_word_l2r` also masks the tokens that
                follow it in its word (Kauf and Ivanova 2023), which does not favour long rare words.
            long_text: `error`, or `window` to predict each token of a long text from the window around it.

        Returns:
            For each text, its tokens with their log-probabilities, the sum, and the pseudo-perplexity. That of a corpus
            is `math.exp(-sum(r.logprob for r in results) / sum(len(r.tokens) for r in results))`. Text without a token
            in the vocabulary is scored as the unknown token, which `TokenScore.unknown` marks.

        Raises:
            InputError: A text or an argument is invalid; the message says which.
        """
        rows = texts_of(texts)
        if rows is None:
            raise InputError(f"texts is a {type(texts).__name__}; give a list of strings")
        check_choice("method", method, get_args(ScoreMethod))
        check_long_text(long_text)
        return list(score_texts(self.model, whole_texts(self.model, rows, long_text), method=method))

    def __call__(self, inputs: str | list[str], *, top_k: int = 5, targets: str | list[str] | None = None) -> list[Any]:
        """Return exactly what `transformers.pipeline("fill-mask")` returns.

        Args:
            inputs: One text or a list; a list of one text gives the same result as the text itself.
            top_k: Predictions per mask, capped at the number of targets.
            targets: Predict only these words; a word that is not a token is replaced by its first piece, with a
                warning.

        Returns:
            For one text with one mask, a list of dictionaries with `score`, `token`, `token_str` and `sequence`; for
            several masks, one such list per mask; for a list of texts, one of these per text.

        Raises:
            InputError: A text or an argument is invalid. It is a ValueError, as in the pipeline.
        """
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list):
            raise InputError(f"inputs is a {type(inputs).__name__}; give a string or a list of strings")
        top_k = check_top_k(self.model, top_k)
        results = answer_as_pipeline(self.model, texts, top_k, targets)
        # The pipeline, too, unwraps a list of one text.
        return results[0] if len(results) == 1 else results

    def _one_with_masks(self, text: str) -> EncodedText:
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string")
        return self.model.encoder.encode([text])[0]


def open_named(folder: Path, name: str, *, threads: int | None = None, self_test: bool = False) -> MaskFiller:
    """Open a model of a bundle on the CPU by its name in the manifest, a precision or `torchscript`."""
    if name == TORCHSCRIPT:
        return MaskFiller(folder, device="cpu", backend="torchscript", threads=threads, self_test=self_test)
    return MaskFiller(folder, device="cpu", backend="onnx", precision=name, threads=threads, self_test=self_test)


def _info(folder: Path, manifest: Manifest, opened: Opened) -> FillerInfo:
    """Describe an open model."""
    return FillerInfo(
        path=folder,
        source=str(manifest.source.get("model", "")),
        architecture=manifest.architecture,
        backend=opened.backend,
        precision=opened.precision,
        provider=opened.session.provider,
        mask_token=manifest.mask_token,
        max_length=manifest.max_length,
        vocab_size=manifest.vocab_size,
        cpu=cpu_kind(),
    )


def _reopen(
    model: str | PathLike[str] | None,
    device: str,
    precision: str,
    threads: int | None,
    backend: str,
    content: str | None = None,
) -> MaskFiller:
    """Open a model again; without hashes to compare, as in a plain export, `content` only tells pickles apart.

    Raises:
        BundleError: The bundle is another one now, and other processes may still answer with the first.
    """
    filler = MaskFiller(model, device=device, precision=precision, threads=threads, backend=backend)
    manifest, path = filler.model.manifest, filler.info.path
    if content is not None and manifest.files and manifest.content(path) != content:
        raise BundleError(f"{path} was replaced since this MaskFiller was pickled; open it again with MaskFiller(...)")
    return filler
