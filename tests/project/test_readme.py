"""Every code block of the README runs, in one folder, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the Hub id that the README names is a local checkpoint of the same layout."""
    work = tmp_path_factory.mktemp("readme")
    checkpoint = work / "distilbert/distilbert-base-uncased"
    shutil.copytree(tiny["distilbert"], checkpoint)
    return work


@pytest.mark.slow
def test_readme_runs(folder: Path) -> None:
    """Bash and Python blocks in order; console blocks contain installation and make, which .ci/run covers."""
    ran = []
    for language, code in BLOCKS:
        if language == "console":
            continue
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        # The checkpoint that stands in is tiny: it takes 64 tokens, not 512.
        code = code.replace("--epochs 1", "--epochs 1 --block-size 64 --max-train-blocks 200")
        command[-1] = code
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        ran.append(done.stdout)
    assert len(ran) == 5
    assert all(ran)


@pytest.mark.parametrize("document", ["guide", "pipelines"])
def test_blocks_of_documents_run(document: str, tmp_path: Path) -> None:
    """The Python blocks of a document, each on its own."""
    text = (ROOT / f"docs/{document}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for code in blocks:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout


def test_readme_names_what_exists() -> None:
    """Linked files and make targets exist."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", text, re.M):
        assert re.search(rf"^{target}:", targets, re.M), target


def test_readme_has_the_newest_figures() -> None:
    """The table matches the output of the tool for the newest results."""
    from readme_benchmarks import updated

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert updated(text) == text
