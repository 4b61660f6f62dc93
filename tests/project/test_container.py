"""The Dockerfile: its style, its steps and its command, which run here without Docker."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from mlm_infer import MaskFiller
from tests.helpers.container import Image, build, cannot_run, ignored, instructions, process_of, run_in, running
from tests.helpers.paths import ROOT, SHIPPED
from tests.helpers.serve import same

ASK = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/fill", b'{"text": "A [MASK] film."}')
request.add_header("content-type", "application/json")
request.add_header("authorization", "Bearer " + sys.argv[1])
print(urllib.request.urlopen(request).read().decode())
"""


def test_hadolint_has_nothing_to_say() -> None:
    """The linter of Dockerfiles, which also checks the shell commands."""
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_builder_gets() -> None:
    """The packages and what builds them, and nothing of tests, environments or the history."""
    patterns = [each for each in (ROOT / ".dockerignore").read_text().split("\n") if each and each[0] != "#"]
    sent = ["setup.cfg", "mlm_infer/serve/app.py", "training/cli.py"]
    held = [
        *("tests/conftest.py", "docs/guide.md", ".git/config", ".venv/bin/pip", "benchmarks/results/2026-11-25.json"),
        "mlm_infer/__pycache__/checks.cpython-311.pyc",
    ]
    assert [name for name in sent + held if not ignored(PurePosixPath(name), patterns)] == sent


def test_versions_are_those_of_the_tests() -> None:
    """The constraints file is used, and both stages have the same base."""
    found = list(instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert [value.split()[0] for name, value in found if name == "FROM"] == ["python:${PYTHON}"] * 2
    assert any("--constraint constraints-optimum.txt" in value for name, value in found if name == "RUN")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built once."""
    reason = cannot_run()
    if reason:
        pytest.skip(f"a Dockerfile without Docker {reason}")
    return build(ROOT, tmp_path_factory.mktemp("image"))


@pytest.fixture
def server(image: Image) -> Iterator[subprocess.Popen[str]]:
    """A running container with a mounted model."""
    with running(image, "/model", "--threads", "1", model=SHIPPED, MLM_SERVE_TOKEN="secret") as container:
        line = container.stderr.readline() if container.stderr else ""
        assert line == "model answers on http://0.0.0.0:8000\n"
        yield container


@pytest.mark.slow
def test_it_holds_what_answers_and_no_more(image: Image) -> None:
    """No installer, no sources, no cache, no torch; compiled, since it cannot write."""
    home = image.files / "opt/mlm-infer"
    (packages,) = home.glob("lib/python3*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert {"mlm_infer", "onnxruntime", "fastapi"} <= installed
    assert not installed & {"pip", "setuptools", "torch", "transformers", "pytest"}
    assert list((packages / "mlm_infer/serve/__pycache__").glob("app.*.pyc"))
    # The folder of the Python that stands in for that of the base image was opened to its user.
    assert {path.name for path in image.files.iterdir()} - set(Path(sys.base_prefix).parts) == {"opt"}


@pytest.mark.slow
def test_without_a_token(image: Image) -> None:
    """It says which variable to set, and ends with the status of wrong usage."""
    with running(image) as container:
        _, told = container.communicate(timeout=60)
    assert container.returncode == 2
    assert told == (
        "error: 0.0.0.0 can be reached from other machines; set MLM_SERVE_TOKEN to a secret that requests must send\n"
    )


@pytest.mark.slow
def test_a_model_that_nobody_may_read(image: Image, tmp_path: Path) -> None:
    """A mounted folder of another user: one line."""
    (tmp_path / "closed").mkdir(mode=0o700)
    with running(image, "/model", model=tmp_path / "closed", MLM_SERVE_TOKEN="secret") as container:
        _, told = container.communicate(timeout=60)
    assert container.returncode == 1
    assert told.startswith("error: ")
    assert told.count("\n") == 1


@pytest.mark.slow
def test_it_answers_and_ends(image: Image, server: subprocess.Popen[str]) -> None:
    """As nobody, from a file system that cannot be written to; healthy while it runs; SIGTERM ends it with 0."""
    inside = process_of(server)
    status = Path(f"/proc/{inside}/status").read_text()
    assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
    assert f"\nNSpid:\t{inside}\t1\n" in status
    assert run_in(server, image, ["touch", "/tmp/written"]).returncode != 0  # noqa: S108
    healthy = run_in(server, image, image.health)
    assert healthy.returncode == 0, healthy.stderr
    answered = run_in(server, image, ["python", "-c", ASK, "secret"])
    assert answered.returncode == 0, answered.stderr
    expected = MaskFiller(device="cpu", threads=1).fill("A [MASK] film.").to_dict()
    assert same(json.loads(answered.stdout), json.loads(json.dumps(expected)))
    assert "HTTP Error 401" in run_in(server, image, ["python", "-c", ASK, "other"]).stderr
    os.kill(inside, signal.SIGTERM)
    assert server.wait(30) == 0


@pytest.mark.slow
def test_an_unhealthy_server(image: Image, server: subprocess.Popen[str]) -> None:
    """The health check fails when nothing answers."""
    os.kill(process_of(server), signal.SIGSTOP)
    assert run_in(server, image, image.health).returncode == 1
