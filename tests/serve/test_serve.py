"""Answers are those of the library, and what is refused is refused in one line."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlm_infer import MaskFiller
from mlm_infer.options import FillOptions
from mlm_infer.serve.questions import FillQuestion, InfillQuestion, RankQuestion, ScoreQuestion
from tests.helpers.paths import ROOT
from tests.helpers.serve import ask, figure, same, serving, until

TEXT = "The acting was [MASK] and the plot made no [MASK]."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the small model."""
    with serving() as (address, _):
        yield address


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The same model in this process."""
    return MaskFiller()


def test_methods_answer_as_the_library(url: str, filler: MaskFiller) -> None:
    """Options, lists, and the shape of the pipeline."""
    options: dict[str, Any] = {"top_k": 3, "words_only": True, "deny": ["the"], "min_score": 0.001}
    for path, question, expected in (
        ("fill", {"text": TEXT} | options, filler.fill(TEXT, **options).to_dict()),
        ("fill", {"text": [TEXT, "A [MASK]."]}, [each.to_dict() for each in filler.fill_batch([TEXT, "A [MASK]."])]),
        (
            "rank",
            {"text": "A [MASK] film.", "candidates": ["good", "very bad"], "normalize": True},
            filler.rank("A [MASK] film.", ["good", "very bad"], normalize=True).to_dict(),
        ),
        ("infill", {"text": TEXT, "beam_size": 3}, [each.to_dict() for each in filler.infill(TEXT, beam_size=3)]),
        ("fill-mask", {"inputs": "A [MASK] film.", "top_k": 2}, filler("A [MASK] film.", top_k=2)),
    ):
        status, found, _ = ask(f"{url}/{path}", question)
        assert status == 200, found
        assert same(found, json.loads(json.dumps(expected))), path
    (scored,) = filler.score(["A good film."], method="pll_word_l2r")
    status, (found,), _ = ask(f"{url}/score", {"texts": ["A good film."], "method": "pll_word_l2r"})
    assert same(found, json.loads(json.dumps(scored.to_dict())) | {"pseudo_perplexity": scored.pseudo_perplexity})


def test_many_clients_share_runs(url: str, filler: MaskFiller) -> None:
    """Each of 60 clients gets its own answer, from fewer runs than there are clients."""
    texts = [f"Part {number} of the [MASK]{' and more' * (number % 7)}." for number in range(60)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda text: ask(f"{url}/fill", {"text": text}), texts))
    for text, (status, found, _) in zip(texts, answers, strict=True):
        assert status == 200
        assert same(found, json.loads(json.dumps(filler.fill(text).to_dict())))
    until(lambda: figure(url, 'mlm_requests_total{path="/fill",status="200"}') >= len(texts))
    assert figure(url, 'mlm_batch_texts_count{path="/fill"}') < figure(url, 'mlm_batch_texts_sum{path="/fill"}')


def test_figures_are_those_of_the_document(url: str) -> None:
    """Every figure is in the table, and nothing else is."""
    table = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    told = re.findall(r"^# TYPE (mlm_\w+)", ask(f"{url}/metrics")[1], re.M)
    assert sorted(re.findall(r"^\| `(mlm_\w+)` \|", table, re.M)) == sorted(
        name for name in told if not name.endswith("_created")
    )


def test_lines(url: str, filler: MaskFiller) -> None:
    """A line for each text in its order, with an error in the place of its answer."""
    texts = [f"Part {number} of the [MASK]." for number in range(300)]
    texts[7] = "no mask"
    status, told, headers = ask(f"{url}/fill", {"text": texts, "top_k": 1}, accept="application/x-ndjson")
    assert (status, headers["content-type"].split(";")[0]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in told.splitlines()]
    assert len(lines) == 300
    assert lines[7]["status"] == 422
    assert lines[7]["detail"].startswith("text 8 of 300 has no mask")
    assert same(lines[299], json.loads(json.dumps(filler.fill(texts[299], top_k=1).to_dict())))


@pytest.mark.parametrize(
    ("path", "question", "status", "detail"),
    [
        ("fill", b'{"text": ', 400, "the body is not JSON: Expecting value"),
        ("fill", {"text": "A [MASK].", "topk": 2}, 422, "there is no option 'topk'; did you mean 'top_k'?"),
        ("fill", {"text": "A [MASK].", "pattern": "(a+)+$"}, 422, "there is no option 'pattern'; "),
        ("fill", {"text": "A [MASK].", "top_k": "5"}, 422, "top_k: Input should be a valid integer"),
        ("fill", {"top_k": 5}, 422, "text: Field required"),
        ("fill", b'{"text": "A [MASK].", "top_k": NaN}', 422, "top_k: Input should be a"),
        ("fill", b'{"text": "A [MASK].", "top_k": 1e999}', 422, "top_k: Input should be a"),
        ("fill", b'{"text": "A [MASK].", "targets": [NaN]}', 422, "targets.0: Input should be a valid string"),
        ("fill", b"[NaN]", 422, "the body: "),
        ("fill", b'{"text": "\\ud800 [MASK]"}', 422, "the text holds half a surrogate pair"),
        ("fill", {"text": "good " * 5_000 + "[MASK]"}, 422, "the text has 25,006 characters, and may have 20,000 here"),
        ("fill", {"text": "A [MASK].", "top_k": 0}, 422, "top_k is 0; it must be from 1"),
        (
            "fill",
            {"text": "[MASK] " * 2000, "top_k": 50},
            422,
            "the limit of answer is 20,000,000 here, and this needs 1,4",
        ),
        ("fill", {"text": ["[MASK]"] * 1000, "top_k": 101}, 422, "the limit of predictions is 100,000 here"),
        ("fill-mask", {"inputs": ["[MASK]"] * 1000, "top_k": 101}, 422, "the limit of predictions is 100,000 here"),
        ("score", {"texts": [""]}, 422, "the text is empty"),
        ("rank", {"text": "A [MASK].", "candidates": []}, 422, "candidates is []; give a list of words or phrases"),
        ("fill", {"text": "A [MASK].", "top_k": 10**400}, 422, "top_k is 1"),
        ("fill", b'{"text": "A [MASK].", "top_k": 1' + b"0" * 5000 + b"}", 400, "There was an error parsing the body"),
        ("fill", {"text": ["A [MASK]."] * 1001}, 422, "the limit of texts is 1,000 here, and this needs 1,001"),
        ("fill", {"text": ["A [MASK].", "A."]}, 422, "text 2 of 2 has no mask"),
        ("fill", b'{"text": "' + b"x" * 1_000_000 + b'"}', 413, "the body has more than 1,000,000 bytes"),
        ("rank", {"text": "A [MASK].", "candidates": ["x"] * 10_001}, 422, "the limit of candidates is 10,000 here"),
        (
            "rank",
            {"text": "A [MASK].", "candidates": ["a b " * 240] * 300},
            422,
            "the limit of copies is 50,000,000 here, and this needs 279,0",
        ),
        (
            "rank",
            {"text": "A [MASK]." + "." * 3_000, "candidates": ["a"] * 10_000},
            422,
            "the limit of answer is 20,000,000 here, and this needs 30,1",
        ),
        ("infill", {"text": "A [MASK].", "beam_size": 101}, 422, "the limit of beam is 100 here, and this needs 101"),
        ("score", {"texts": ["x " * 20_000]}, 422, "the limit of characters is 20,000 here, and this needs 40,000"),
        ("nowhere", {"text": "A [MASK]."}, 404, "Not Found"),
    ],
)
def test_what_is_refused(url: str, path: str, question: Any, status: int, detail: str) -> None:
    """Problem details with one line."""
    found, told, headers = ask(f"{url}/{path}", question)
    assert (found, told["status"], headers["content-type"]) == (status, status, "application/problem+json")
    assert told["detail"].startswith(detail), told
    assert "\n" not in told["detail"]


def test_content_type(url: str) -> None:
    """A body that is not said to be JSON is refused with the header to send."""
    status, told, _ = ask(f"{url}/fill", b'{"text": "A [MASK]."}', content_type="text/plain")
    assert status == 415
    assert told["detail"] == (
        "the content-type is 'text/plain'; send JSON with the header content-type: application/json"
    )


def test_schema_is_that_of_the_methods(url: str) -> None:
    """Every option is there with its default and its documentation, except the one that strangers may not have."""
    _, schema, _ = ask(f"{url}/openapi.json")
    fields = schema["components"]["schemas"]["Fill"]["properties"]
    options = {name for name in FillOptions.__dataclass_fields__ if name not in ("pattern", "restriction")}
    assert fields.keys() == options | {"text"}
    assert fields["top_k"]["default"] == 5
    for model in (FillQuestion, RankQuestion, InfillQuestion, ScoreQuestion):
        for name, field in model.model_fields.items():
            assert field.description, name
    assert {"/fill", "/rank", "/infill", "/score", "/fill-mask", "/health", "/ready", "/info", "/metrics"} <= (
        schema["paths"].keys()
    )


def test_token() -> None:
    """Without the token nothing but the page and the health is told."""
    with serving(MLM_SERVE_TOKEN="secret") as (url, _):
        for path, question in (("fill", {"text": "A [MASK]."}), ("info", None), ("metrics", None), ("docs", None)):
            for headers in ({}, {"authorization": "Bearer other"}):
                status, told, answered = ask(f"{url}/{path}", question, **headers)
                assert (status, answered["www-authenticate"]) == (401, "Bearer")
                assert "Authorization: Bearer TOKEN" in told["detail"]
        assert ask(f"{url}/health")[0] == ask(f"{url}/")[0] == 200
        assert ask(f"{url}/fill", {"text": "A [MASK]."}, authorization="Bearer secret")[0] == 200


def run(*options: str) -> tuple[int, str]:
    """Return exit status and stderr of a command that does not come to serve."""
    command = [sys.executable, "-m", "mlm_infer.cli.serve_command", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


def test_what_does_not_start(tmp_path: Path) -> None:
    """A port in use, no such model, an open address without a token: one line, and nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, told = run("--port", port)
    assert (status, told) == (
        2,
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --port or --host\n",
    )
    for workers in ("1", "2"):
        status, told = run(str(tmp_path), "--port", port, "--workers", workers)
        assert status == 1
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(port))):
            pass
    assert run("--workers", "0") == (2, "error: workers is 0; it must be from 1 to 256\n")
    status, told = run("--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert (status, told.count("\n")) == (2, 1)
    assert "set MLM_SERVE_TOKEN" in told


def test_page_fetches_nothing_from_elsewhere(url: str) -> None:
    """One file under a policy that a browser enforces, which puts no text in as markup."""
    status, page, headers = ask(f"{url}/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"(https?:)?//[\w.]+|innerHTML|insertAdjacentHTML|document\.write", page)
