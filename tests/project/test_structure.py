"""Structural rules: light imports, import directions, the wheel's contents, quick --help, sizes, documents."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

HEAVY = {
    "torch",
    "transformers",
    "optimum",
    "datasets",
    "onnx",
    "onnx_ir",
    "accelerate",
    "matplotlib",
    "pandas",
    "pyarrow",
}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that are loaded in a fresh interpreter after some code."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_filling_a_mask_loads_nothing_heavy() -> None:
    """Only numpy, tokenizers and onnxruntime."""
    loaded = loaded_by("from mlm_infer import MaskFiller; MaskFiller()('A [MASK] film.')")
    assert {"numpy", "tokenizers", "onnxruntime"} <= loaded
    assert not loaded & HEAVY
    third_party = {"numpy", "tokenizers", "onnxruntime", "mlm_infer"}
    allowed = third_party | set(sys.stdlib_module_names) | loaded_by("import numpy, onnxruntime, tokenizers")
    assert not {name for name in loaded - allowed if not name.startswith("_")}


def test_import_alone_loads_nothing() -> None:
    """`import mlm_infer` imports no third-party package."""
    assert not loaded_by("import mlm_infer") & (HEAVY | {"numpy", "tokenizers", "onnxruntime"})


def test_nothing_is_sent_or_left(tmp_path: Path) -> None:
    """ONNX Runtime, which would keep an identifier in the user's home and send usage data, is told not to."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = "from mlm_infer import MaskFiller; MaskFiller()('A [MASK] film.')"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module",
    ["mlm_infer.cli.fill_command", "mlm_infer.training.cli", "mlm_infer.export.cli", "mlm_infer.benchmarks.cli"],
)
def test_help_comes_before_heavy_imports(module: str) -> None:
    """`--help` imports click only."""
    loaded = loaded_by(f"import runpy, sys\nfrom {module} import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert not loaded & (HEAVY | {"numpy", "tokenizers", "onnxruntime"})


PARTS = ("training", "export", "benchmarks")
ROOMS = (
    ("errors",),
    ("results", "checks"),
    ("bundle",),
    ("text", "runtime"),
    ("options",),
    ("tasks", "locate"),
    ("shared",),
    ("filler",),
    ("async_filler", "inspection"),
    ("serve", "ray"),
    ("cli",),
)
"""The modules and folders of the run time from the ground up: each imports from floors below its own, and itself."""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules that a file imports, as written, with the number of leading dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def test_imports_go_one_way() -> None:
    """training, export and benchmarks import mlm_infer, which imports none of them; nor do training and export.

    Benchmarks measure the training, so they import it.
    """
    for folder in ("mlm_infer", *PARTS):
        for path in (ROOT / folder).rglob("*.py"):
            for name, level in imports(path):
                assert level < 2, f"{path} reaches out of its folder"
                if level:
                    continue
                first, _, rest = name.partition(".")
                assert first not in PARTS, f"{path} imports {name} by its folder"
                if first == "mlm_infer":
                    part = rest.partition(".")[0]
                    assert part not in PARTS or (folder, part) == ("benchmarks", "training"), f"{path} imports {name}"


def run_time_imports() -> Iterator[tuple[Path, str]]:
    """Yield each import within the run time: the file, and the imported module without `mlm_infer.`."""
    home = ROOT / "mlm_infer"
    for path in home.rglob("*.py"):
        here = path.relative_to(home).parts[:-1]
        for name, level in imports(path):
            if level:
                yield path, ".".join([*here, name] if name else here)
            elif name.startswith("mlm_infer."):
                yield path, name.removeprefix("mlm_infer.")


def test_rooms_of_the_run_time_lie_in_floors() -> None:
    """Each folder imports only from layers below its own, and every module is in the list."""
    floors = {name: floor for floor, names in enumerate(ROOMS) for name in names}
    home = ROOT / "mlm_infer"
    held = {path.relative_to(home).parts[0].removesuffix(".py") for path in home.rglob("*.py")} - {"__init__"}
    assert held == set(floors)
    for path, name in run_time_imports():
        mine, other = path.relative_to(home).parts[0].removesuffix(".py"), name.partition(".")[0]
        if mine not in ("__init__", other):
            assert floors[other] < floors[mine], f"{path} imports {name}, which is not below it"


def test_no_circles_within_a_room() -> None:
    """No import cycles between modules of a folder."""
    home = ROOT / "mlm_infer"
    needs: dict[str, set[str]] = {}
    for path, name in run_time_imports():
        mine = ".".join(path.relative_to(home).with_suffix("").parts)
        needs.setdefault(mine, set()).add(name)
    # Raises CycleError, which names the circle.
    assert list(TopologicalSorter(needs).static_order())


def test_rooms_are_small_and_packaged() -> None:
    """At most 12 modules per folder, and setup.cfg lists each folder, which setuptools would omit silently."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(settings["options"]["packages"].split())
    rooms = [path.parent for path in (ROOT / "mlm_infer").rglob("__init__.py")]
    found = {".".join(room.relative_to(ROOT).parts) for room in rooms}
    assert listed == found | {f"mlm_infer.{part}" for part in PARTS}
    for room in rooms:
        assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 12, room


def test_mapped_folders_are_flat() -> None:
    """A sub-package would be omitted from the wheel silently."""
    for folder in PARTS:
        inner = [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and any(path.glob("*.py"))]
        assert inner == []


@pytest.mark.slow
def test_wheel_holds_every_module_and_resource(tmp_path: Path) -> None:
    """The wheel contains what git tracks of the four packages."""
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    # setuptools would take modules that are gone from what it built before.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mlm_infer/")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {name for name in tracked if name.startswith("mlm_infer/")}
    for folder in ("training", "export", "benchmarks"):
        kinds = (".py", ".toml")
        expected |= {f"mlm_infer/{name}" for name in tracked if name.startswith(f"{folder}/") and name.endswith(kinds)}
    assert held == expected
    assert wheel.stat().st_size < 12_000_000


def modules_of_tests() -> Iterator[tuple[str, Path]]:
    """Yield the files below tests/ with their dotted names."""
    for path in (ROOT / "tests").rglob("*.py"):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def test_no_test_module_imports_another() -> None:
    """Shared code is in tests/helpers, or in a file without tests in the same folder."""
    tests = {name for name, path in modules_of_tests() if path.name.startswith("test_")}
    assert len(tests) > 40
    for here, path in modules_of_tests():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = here.split(".")[: -node.level] if node.level else []
                module = ".".join([*start, *([node.module] if node.module else [])])
                found = {module, *(f"{module}.{alias.name}" for alias in node.names)}
            else:
                continue
            assert not found & tests, f"{path} imports {found & tests}"


def test_rooms_of_the_tests_are_small_and_say_what_is_tested() -> None:
    """Each folder has a one-line description and at most 12 files of under 350 lines."""
    rooms = {path.parent for _, path in modules_of_tests()}
    for room in rooms:
        document = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert document, room
        assert len(document.splitlines()) == 1, room
        assert len(list(room.glob("test_*.py"))) <= 12, room
    for _, path in modules_of_tests():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 350, path


MOST_LINES = {ast.Module: 350, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
REASON = re.compile(r"\bLong\s+because\b")


@pytest.mark.parametrize("folder", ["mlm_infer", *PARTS, "tests", "tools", "examples"])
def test_what_is_long_says_why(folder: str) -> None:
    """A file of over 350 lines, or a function of over 60, has a sentence "Long because ..." in its docstring."""
    for path in (ROOT / folder).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module):
                name, lines = "the file", len(source.splitlines())
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, lines = node.name, (node.end_lineno or node.lineno) - node.lineno + 1
            else:
                continue
            assert lines <= MOST_LINES[type(node)] or REASON.search(ast.get_docstring(node) or ""), (
                f"{path}: {name} has {lines} lines; split it, or let its docstring say: Long because ..."
            )


def test_the_source_tree_of_contributing_names_every_module() -> None:
    """Every module of the packages and tools by its stem, and every folder of tests."""
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[3]
    named = set(re.findall(r"\w+", tree))
    for folder in ("mlm_infer", *PARTS, "tools"):
        modules = {path.stem for path in (ROOT / folder).rglob("*.py") if not path.stem.startswith("__")}
        assert modules <= named, folder
    assert {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")} <= named
    for name in re.findall(r"\w+\.py", tree):
        assert any(ROOT.glob(f"*/{name}")) or any((ROOT / "mlm_infer").glob(f"*/{name}")), name


def test_files_of_tests_that_are_named_exist() -> None:
    """Test files that documents, comments or the Makefile name exist."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = {
        (file, test)
        for file in tracked
        if file.endswith((".md", ".py", ".toml", ".cfg", ".sh", "Makefile")) and (ROOT / file).is_file()
        for test in re.findall(r"\btests/[\w/]*\w\.py\b", (ROOT / file).read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    for file, test in named:
        assert (ROOT / test).is_file(), f"{file} names {test}"


def test_security_document_names_tests_that_exist() -> None:
    """Every guarantee of docs/security.md names an existing test."""
    document = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`", document)
    assert len(named) > 40
    for file, test in named:
        defined = re.findall(r"^(?:async )?def (test_\w+)", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE)
        assert test in defined if test else defined, f"{file}::{test}"
