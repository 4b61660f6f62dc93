"""The bodies of requests, with the arguments, defaults and documentation of the Python methods."""

import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from mlm_infer.filler import MaskFiller

__all__ = ["FillQuestion", "InfillQuestion", "PipelineQuestion", "RankQuestion", "ScoreQuestion"]

_HELD_BACK = {"pattern"}
"""A regular expression can keep the process busy for years, so strangers may not choose one."""

_OF_ARGUMENT = re.compile(r"^            (\w+): (.*?)(?=^            \w|\Z)", re.M | re.S)


def _question(name: str, method: Callable[..., Any], **own: Any) -> type[BaseModel]:
    """Return the model of a body: the arguments of a method, of which some have other types here."""
    texts = _documentation(method)
    hints = get_type_hints(method)
    fields: dict[str, Any] = {}
    for argument in inspect.signature(method).parameters.values():
        if argument.name == "self" or argument.name in _HELD_BACK:
            continue
        default = ... if argument.default is argument.empty else argument.default
        kind = own.get(argument.name, hints[argument.name])
        fields[argument.name] = kind, Field(default, description=texts.get(argument.name))
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _documentation(method: Callable[..., Any]) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    arguments = (method.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in _OF_ARGUMENT.findall(arguments + "\n")}


_WORDS = list[str] | None

FillQuestion = _question("Fill", MaskFiller.fill, text=str | list[str], targets=_WORDS, allow=_WORDS, deny=_WORDS)
RankQuestion = _question("Rank", MaskFiller.rank, candidates=list[str] | list[list[str]])
InfillQuestion = _question("Infill", MaskFiller.infill, allow=_WORDS, deny=_WORDS)
ScoreQuestion = _question("Score", MaskFiller.score, texts=list[str])
PipelineQuestion = _question("FillMask", MaskFiller.__call__, inputs=str | list[str], targets=str | list[str] | None)
