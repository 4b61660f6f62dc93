"""Reads `mlm_infer.json`: any content gives either a valid manifest or one clear error."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlm_infer.errors import BundleError

from .interface import ENCODER_INPUTS
from .manifest import MANIFEST, SCHEMA, TOKENIZER, KnownAnswer, Manifest, ModelFile, StoredFile

__all__ = ["read_manifest"]

_LARGEST = 16 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_IDS = 2**31
_LARGEST_VOCABULARY = 2**24


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a bundle.

    Args:
        folder: The bundle.

    Raises:
        BundleError: The folder is not a bundle, its manifest cannot be read, or a newer version wrote it.
    """
    path = folder / MANIFEST
    try:
        if not folder.exists():
            raise BundleError(f"there is no folder {folder}; write one with: mlm-export MODEL {folder}")
        if not path.is_file():
            hint = f"mlm-export {folder} OUT" if (folder / "config.json").is_file() else f"mlm-export MODEL {folder}"
            raise BundleError(f"{folder} is not a bundle: it contains no {MANIFEST}; write one with: {hint}")
        with path.open("rb") as stream:
            # Bounded: the file may have any size.
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise BundleError(f"{path} has more than {_LARGEST:,} bytes, too many for a manifest; export the model again")
    try:
        values = json.loads(data)
    # The JSON parser recurses as deeply as the text is nested.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error!s:.80}); export the model again") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BundleError(f"{path} has no schema number; export the model again")
    if schema > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; upgrade mlm-infer")
    try:
        for older in range(schema, SCHEMA):
            values = _UPGRADES[older](values)
        return _parse(values)
    except (_FieldError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; export the model again") from None


def _upgrade_1(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 added `known_answers` and `mixes_padding`."""
    return values | {"known_answers": {}, "mixes_padding": False}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_1}
"""For each older schema, the upgrade to the next one."""


class _FieldError(Exception):
    """An invalid field."""


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise _FieldError(f"{name} is {value!r:.60}, not {wanted}")


def _get(values: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    value = values.get(name)
    # In Python, bool is a subclass of int.
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _check(right, f"{where}{name}", value, f"of type {kind.__name__}")
    return value


def _number(values: Mapping[str, Any], name: str, low: int, high: int, where: str = "") -> int:
    value: int = _get(values, name, int, where)
    _check(low <= value < high, f"{where}{name}", value, f"from {low} to {high - 1}")
    return value


def _text(values: Mapping[str, Any], name: str, where: str = "") -> str:
    value: str = _get(values, name, str, where)
    # JSON strings may contain lone surrogates and control characters; neither is printable.
    _check(bool(value) and value.isprintable(), f"{where}{name}", value, "a printable text")
    return value


def _parse(values: Mapping[str, Any]) -> Manifest:
    vocabulary = _number(values, "vocab_size", 1, _LARGEST_VOCABULARY)
    files = {name: _stored(name, each) for name, each in _get(values, "files", dict).items()}
    models = {name: _model(name, each, files) for name, each in _get(values, "models", dict).items()}
    _check(bool(models), "models", {}, "at least one model")
    _check(TOKENIZER in files, "files", sorted(files), f"with {TOKENIZER}")
    inputs = _get(values, "inputs", list)
    known = "input_ids" in inputs and all(inputs.count(each) == 1 and each in ENCODER_INPUTS for each in inputs)
    _check(known, "inputs", inputs, f"input_ids and others of {', '.join(ENCODER_INPUTS)}")
    source = _get(values, "source", dict)
    _check(str(source.get("model", "")).isprintable(), "source.model", source.get("model"), "a printable text")
    versions = _get(values, "created_with", dict)
    for name in versions:
        _text(versions, name, "created_with.")
    answers = _get(values, "known_answers", dict)
    return Manifest(
        source=source,
        architecture=_text(values, "architecture"),
        mask_token=_text(values, "mask_token"),
        mask_id=_number(values, "mask_id", 0, vocabulary),
        pad_id=_number(values, "pad_id", 0, vocabulary),
        vocab_size=vocabulary,
        max_length=_number(values, "max_length", 3, _MOST_IDS),
        clean_up_spaces=_get(values, "clean_up_spaces", bool),
        inputs=tuple(inputs),
        models=models,
        parity=_get(values, "parity", dict),
        files=files,
        created_with=versions,
        mixes_padding=_get(values, "mixes_padding", bool),
        known_answers={name: _answers(name, answers, models, vocabulary) for name in answers},
    )


def _stored(name: str, values: object) -> StoredFile:
    _check(_FILE_NAME.fullmatch(name) is not None, "a file", name, "a name in its own folder")
    if not isinstance(values, dict):
        raise _FieldError(f"files.{name} is {values!r:.60}, not size and sha256")
    where = f"files.{name}."
    sha256 = _get(values, "sha256", str, where)
    _check(_SHA256.fullmatch(sha256) is not None, f"{where}sha256", sha256, "64 hexadecimal digits")
    return StoredFile(_number(values, "bytes", 0, 2**63, where), sha256)


def _model(precision: str, values: object, files: Mapping[str, StoredFile]) -> ModelFile:
    if not isinstance(values, dict):
        raise _FieldError(f"models.{precision!s:.20} is {values!r:.60}, not a model")
    where = f"models.{precision:.20}."
    _check(precision.isidentifier(), "a precision", precision, "a word such as fp32")
    for name in ("file", "weights"):
        if name == "weights" and values.get(name) is None:
            continue
        each = _get(values, name, str, where)
        _check(each in files, f"{where}{name}", each, f"one of the files: {', '.join(sorted(files))}")
    cpu = values.get("cpu")
    _check(cpu is None or isinstance(cpu, str), f"{where}cpu", cpu, "of type str")
    return ModelFile(values["file"], values.get("weights"), cpu, _get(values, "details", dict, where))


def _answers(
    precision: str, values: Mapping[str, Any], models: Mapping[str, ModelFile], vocabulary: int
) -> tuple[KnownAnswer, ...]:
    _check(precision in models, "known_answers", precision, f"for one of the models: {', '.join(models)}")
    found = []
    for each in _get(values, precision, list, "known_answers."):
        try:
            ids = tuple(tuple(row) for row in each["ids"])
            logprobs = tuple(tuple(map(float, row)) for row in each["logprobs"])
            right = isinstance(each["text"], str) and bool(ids) and [*map(len, ids)] == [*map(len, logprobs)]
            right = right and all(type(token) is int and 0 <= token < vocabulary for row in ids for token in row)
            right = right and all(ids) and all(math.isfinite(number) for row in logprobs for number in row)
        except (TypeError, ValueError, KeyError, OverflowError):
            right = False
        _check(right, f"known_answers.{precision}", each, "text, ids and logprobs of the same shape")
        found.append(KnownAnswer(each["text"], ids, logprobs))
    return tuple(found)
