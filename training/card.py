"""README.md of a fine-tuned model: the model card that the Hub shows."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import DatasetCard, ModelCard, ModelCardData

from mlm_infer.shared.tables import without_controls

from .config import TrainConfig
from .report import TrainReport, is_local, public_name
from .sources import BUILT_IN

__all__ = ["find_licences", "save_card"]

_UNKNOWN = "not stated"


def find_licences(config: TrainConfig) -> dict[str, str]:
    """Return the licences of the initial model and of the data, as far as their own cards state them.

    Args:
        config: Names model and data.
    """
    sources = [config.data, *([config.validation_data] if config.validation_data else [])]
    return {public_name(config.model): _licence(config.model, ModelCard)} | {
        public_name(source): "MIT" if source == BUILT_IN else _licence(source, DatasetCard) for source in sources
    }


def _licence(source: str, kind: type[ModelCard] | type[DatasetCard]) -> str:
    path = Path(source).expanduser()
    card = path / "README.md"
    if path.exists() and not card.is_file():
        return _UNKNOWN
    try:
        found = kind.load(card if path.exists() else source, ignore_metadata_errors=True).data.get("license")
    except Exception:  # a stranger's file, and parsers of YAML raise errors of their own
        return _UNKNOWN
    names = found if isinstance(found, list) else [found]
    return ", ".join(str(name) for name in names if name) or _UNKNOWN


def save_card(report: TrainReport, path: Path) -> None:
    """Write the card.

    Args:
        report: What it tells.
        path: Markdown file to write.
    """
    config = report.config
    sources = [each for each in (config.data, config.validation_data) if each and each != BUILT_IN]
    known = [each for each in sources if not is_local(each)]
    metadata = ModelCardData(
        base_model=None if is_local(config.model) else config.model,
        datasets=known or None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["fill-mask", "mlm-infer"],
    )
    path.write_text(f"---\n{metadata.to_yaml()}\n---\n\n{_body(report)}", encoding="utf-8")


def _body(report: TrainReport) -> str:
    settings = dict(report.settings())
    parts = [
        f"# {_plain(report.name)}",
        f"{_plain(str(settings['model']))}, fine-tuned as a masked language model on "
        f"{_plain(str(settings['data']))} with `mlm-train`. {_plain(report.summary())}",
        "![training curve](report/curve.png)",
        "## Results",
        _table(*report.cells()),
        "Loss is the mean negative log-likelihood in nats over all masked tokens of the validation text, and "
        "perplexity its exponential. The masks are drawn once, so all rows predict the same tokens.",
        *_sentences(report),
        "## Data",
        _table(("", ""), report.data_facts()),
        "## Settings",
        _table(("setting", "value"), report.settings()),
        "## Use",
        "```python\nfrom transformers import pipeline\n\n"
        'pipeline("fill-mask", "PATH OR REPOSITORY OF THIS MODEL")("Text with a mask token.")\n```',
        "## Licences",
        _table(("source", "licence"), report.licences.items()),
        "The licence of this model is for its author to state, in agreement with those above: as `license:` at the top "
        "of this file.",
        "## Limitations",
        "The model predicts what its training text makes likely, with the errors and prejudices of that text.",
        *(f"Warning of the training: {_plain(each)}" for each in report.warnings),
    ]
    return "\n\n".join(parts) + "\n"


def _sentences(report: TrainReport) -> list[str]:
    if not report.fills:
        return []
    first, last = report.evaluations[0].step, report.evaluations[-1].step
    rows = [(text, report.fill(text, first), report.fill(text, last)) for text in report.prompts]
    return ["## Sentences", _table(("sentence", "before", "after"), rows)]


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", without_controls(text))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *([_plain(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
