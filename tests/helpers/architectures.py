"""The architectures of the installed transformers that can be trained, and those that its exporter exports."""

import importlib.metadata
from collections.abc import Iterable

import pytest

__all__ = ["ARCHITECTURES", "EXPORTED", "IS_5", "UNFUSED", "each"]

IS_5 = importlib.metadata.version("transformers").startswith("5.")

_OF_BOTH = [
    "albert",
    "bert",
    "big_bird",
    "camembert",
    "convbert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "esm",
    "flaubert",
    "ibert",
    "longformer",
    "megatron-bert",
    "mobilebert",
    "modernbert",
    "mpnet",
    "nystromformer",
    "rembert",
    "roberta",
    "roformer",
    "squeezebert",
    "xlm",
    "xlm-roberta",
]
_OF_5 = [
    "ernie",
    "esmc",
    "eurobert",
    "fnet",
    "gte",
    "jina_embeddings_v3",
    "luke",
    "nomic_bert",
    "roberta-prelayernorm",
    "roc_bert",
    "ultrabert",
    "xlm-roberta-xl",
    "xmod",
]

ARCHITECTURES = [*_OF_BOTH, *(_OF_5 if IS_5 else ())]
"""Those of tools/tiny_models.py, in its order."""

# transformers' own exporter takes the number of Longformer's windows for a constant.
EXPORTED = [name for name in ARCHITECTURES if not (IS_5 and name == "longformer")]

UNFUSED = {
    "convbert",
    "deberta",
    "deberta-v2",
    "fnet",
    "longformer",
    "nystromformer",
    "squeezebert",
}
"""Positions that depend on the content, windows in blocks, convolutions, no attention: as they were exported."""

_ONE_A_FAMILY = {
    "albert",
    "bert",
    "deberta-v2",
    "distilbert",
    "esm",
    "modernbert",
    "roberta",
    "xlm",
    "esmc",
    "eurobert",
    "gte",
    "nomic_bert",
}


def each(names: Iterable[str]) -> list[object]:
    """Return parameters for a test of every architecture, of which the quick tests run one of each family."""
    return [pytest.param(name, marks=() if name in _ONE_A_FAMILY else pytest.mark.slow) for name in names]
