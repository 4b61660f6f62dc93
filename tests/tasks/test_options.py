"""The options of `fill`: defined once, and the same in every method and in the command."""

import asyncio
import dataclasses
import inspect
import json
import subprocess
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from mlm_infer import AsyncMaskFiller, InputError, MaskFiller
from mlm_infer.cli.fill_command import main
from mlm_infer.options import FillKeywords, FillOptions

TEXT = "The film was [MASK] good."


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The shipped model."""
    return MaskFiller()


def fields() -> dict[str, Any]:
    """The options by name, with their defaults."""
    return {each.name: each.default for each in dataclasses.fields(FillOptions) if each.init}


def test_keywords_are_the_fields() -> None:
    """The keyword arguments have the names and types of the option fields."""
    hints = get_type_hints(FillOptions)
    assert get_type_hints(FillKeywords) == {name: hints[name] for name in fields()}


def test_fill_spells_them_out() -> None:
    """`help()` and notebooks show each option with its default."""
    parameters = inspect.signature(MaskFiller.fill).parameters
    assert {name: each.default for name, each in parameters.items() if name not in ("self", "text")} == fields()
    document = inspect.getdoc(MaskFiller.fill) or ""
    assert all(f"\n    {name}: " in document for name in fields())


def test_the_command_offers_them_all() -> None:
    """With the same names and defaults."""
    offered = {each.name: each.opts[0] for each in main.params}
    given = main.make_context("mlm-fill", [TEXT]).params
    for name, default in fields().items():
        assert offered[name] == f"--{name.replace('_', '-')}"
        assert (given[name] or default) == default


@pytest.mark.parametrize("name", ["topk", "word_only", "nonsense", "restriction"])
def test_a_wrong_name_is_one_line(name: str, filler: MaskFiller) -> None:
    """The error suggests the closest option; methods that take `**options` check them immediately."""
    hint = {"topk": "did you mean 'top_k'", "word_only": "did you mean 'words_only'"}.get(name, "there are top_k, ")
    wrong: Any = {name: 3}

    async def ask() -> None:
        async with AsyncMaskFiller(filler) as server:
            await server.fill(TEXT, **wrong)

    for call in (
        lambda: filler.fill_batch([TEXT], **wrong),
        lambda: filler.fill_stream([TEXT], **wrong),
        lambda: asyncio.run(ask()),
    ):
        with pytest.raises(InputError, match=rf"there is no option '{name}'; {hint}"):
            call()


OPTIONS: list[dict[str, Any]] = [
    {"top_k": 2},
    {"targets": ["very", "so"]},
    {"allow": ["very", "so", "not"], "top_k": 3},
    {"deny": ["very"]},
    {"words_only": True, "pattern": "[a-z]+ly"},
    {"min_score": 0.05},
    {"allow": ["very", "so"], "renormalize": True, "top_k": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_way_answers_alike(options: dict[str, Any], filler: MaskFiller) -> None:
    """One text, a batch, a stream, an await and the command."""
    expected = filler.fill(TEXT, **options)
    assert filler.fill_batch([TEXT], **options) == [expected]
    assert list(filler.fill_stream([TEXT], **options)) == [expected]

    async def ask() -> Any:
        async with AsyncMaskFiller(filler) as server:
            return await server.fill(TEXT, **options)

    assert asyncio.run(ask()) == expected
    command = ["mlm-fill", TEXT, "--json"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        command += [option] if value is True else [option, ",".join(value) if isinstance(value, list) else str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.to_dict()))


def test_long_texts_and_files(filler: MaskFiller, tmp_path: Path) -> None:
    """`--long-text window` answers a text above the maximum length, in a file too."""
    text = "A slow start. " * 300 + TEXT
    source, output = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    source.write_text(f"{text}\n", encoding="utf-8")
    refused = subprocess.run(["mlm-fill", text], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--long-text window" in refused.stderr
    command = ["mlm-fill", "--input", str(source), "--output", str(output), "--long-text", "window", "--deny", "very"]
    subprocess.run(command, capture_output=True, check=True)
    expected = filler.fill(text, long_text="window", deny=["very"])
    assert json.loads(output.read_text(encoding="utf-8")) == json.loads(json.dumps(expected.to_dict()))
