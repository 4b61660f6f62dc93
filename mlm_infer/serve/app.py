"""The application: a path for each method of a `MaskFiller`, the page, and what a supervisor asks for."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mlm_infer.errors import InputError, MlmInferError
from mlm_infer.filler import MaskFiller
from mlm_infer.results import FillResult, Infilling, RankResult, ScoreResult

from .desk import Desk
from .guard import Guard
from .limits import Limits
from .metrics import Metrics
from .problems import ProblemError, tell_http, tell_problem, tell_wrong_body
from .questions import FillQuestion, InfillQuestion, PipelineQuestion, RankQuestion, ScoreQuestion

__all__ = ["make_app"]

_LINES = "application/x-ndjson"
_SHORT, _FEW = 1_000, 50
"""Characters of a text, and predictions, whose JSON takes less time than a thread does to begin."""


def make_app(filler: MaskFiller, limits: Limits | None = None, *, token: str | None = None) -> FastAPI:
    """Return an ASGI application that answers for a model.

    Args:
        filler: The model; it stays open when the application ends.
        limits: The limits; None means the default ones.
        token: What `Authorization: Bearer` must hold; None asks for nothing.
    """
    limits, metrics = limits or Limits(), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Desk(filler, limits, metrics) as app.state.desk:
            yield

    app = FastAPI(
        title="mlm-serve",
        description="The methods of a MaskFiller.",
        docs_url="/docs",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.filler, app.state.limits, app.state.metrics = filler, limits, metrics
    app.add_middleware(Guard, limits=limits, metrics=metrics, token=token)
    app.add_exception_handler(RequestValidationError, tell_wrong_body)
    app.add_exception_handler(HTTPException, tell_http)
    for kind in (ProblemError, MlmInferError, TimeoutError, Exception):
        app.add_exception_handler(kind, tell_problem)
    for path, handler, model in (
        ("/fill", _fill, FillResult | list[FillResult]),
        ("/rank", _rank, RankResult),
        ("/infill", _infill, list[Infilling]),
        ("/score", _score, list[ScoreResult]),
        ("/fill-mask", _fill_mask, None),
    ):
        app.post(path, response_model=model)(handler)
    app.get("/info")(_info)
    app.get("/health")(_health)
    app.get("/ready")(_health)
    app.get("/metrics")(_metrics)
    app.get("/", include_in_schema=False)(_page)
    return app


async def _fill(question: FillQuestion, request: Request) -> Response:  # type: ignore[valid-type]
    """Fill the masks of one text or of several; `Accept: application/x-ndjson` asks for a line each, as they come."""
    options = _given(question)
    text = options.pop("text")
    texts = [text] if isinstance(text, str) else text
    request.app.state.desk.check_predictions(texts, question.top_k)  # type: ignore[attr-defined]
    answers = request.app.state.desk.fill(texts, **options)
    if _LINES in request.headers.get("accept", ""):
        return StreamingResponse(_lines(answers), media_type=_LINES)
    results = []
    async for answer in answers:
        if isinstance(answer, InputError):
            raise answer
        results.append(answer)
    if isinstance(text, str) and len(text) <= _SHORT and question.top_k <= _FEW:  # type: ignore[attr-defined]
        return Response(json.dumps(results[0].to_dict()).encode(), media_type="application/json")
    return await _json(lambda: results[0].to_dict() if isinstance(text, str) else [each.to_dict() for each in results])


async def _lines(answers: AsyncIterator[FillResult | InputError]) -> AsyncIterator[str]:
    """Yield a line for each answer; an error stands in its place, and one that ends all is the last line."""
    try:
        async for answer in answers:
            told = answer.to_dict() if isinstance(answer, FillResult) else ProblemError.of(answer).body()
            yield json.dumps(told) + "\n"
    except (MlmInferError, TimeoutError) as error:
        yield json.dumps(ProblemError.of(error).body()) + "\n"


async def _rank(question: RankQuestion, request: Request) -> Response:  # type: ignore[valid-type]
    """Rank words and phrases for the masks of a text."""
    options = _given(question)
    desk, length = request.app.state.desk, len(options["text"])
    words = [word for part in options["candidates"] for word in (part if isinstance(part, list) else [part])]
    desk.check(
        candidates=len(words),
        characters=length,
        answer=sum(length + len(word) for word in words),
        copies=sum(len(word) * (length + len(word)) for word in words),
    )
    result = await desk.in_turn("/rank", partial(request.app.state.filler.rank, **options))
    return await _json(result.to_dict)


async def _infill(question: InfillQuestion, request: Request) -> Response:  # type: ignore[valid-type]
    """Fill all masks of a text jointly."""
    options = _given(question)
    desk = request.app.state.desk
    desk.check(characters=len(options["text"]), beam=max(options.get("beam_size", 1), options.get("top_k", 1)))
    found = await desk.in_turn("/infill", partial(request.app.state.filler.infill, **options))
    return await _json(lambda: [each.to_dict() for each in found])


async def _score(question: ScoreQuestion, request: Request) -> Response:  # type: ignore[valid-type]
    """Score texts, token by token."""
    options = _given(question)
    desk = request.app.state.desk
    desk.check(texts=len(options["texts"]), characters=sum(map(len, options["texts"])))
    found = await desk.in_turn("/score", partial(request.app.state.filler.score, **options))
    return await _json(lambda: [each.to_dict() | {"pseudo_perplexity": each.pseudo_perplexity} for each in found])


async def _fill_mask(question: PipelineQuestion, request: Request) -> Response:  # type: ignore[valid-type]
    """Answer in the shape of the transformers pipeline."""
    options = _given(question)
    texts = options["inputs"]
    texts = [texts] if isinstance(texts, str) else texts
    desk = request.app.state.desk
    desk.check(characters=sum(map(len, texts)))
    desk.check_predictions(texts, question.top_k)  # type: ignore[attr-defined]
    found = await desk.in_turn("/fill-mask", partial(request.app.state.filler, **options))
    return await _json(lambda: found)


def _info(request: Request) -> dict[str, Any]:
    """Tell the model, and the limits."""
    info = asdict(request.app.state.filler.info)
    return info | {"path": info["path"].name, "limits": asdict(request.app.state.limits)}


def _health() -> dict[str, str]:
    """Tell that the server runs; the model is open before it listens."""
    return {"status": "ok"}


def _metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    content, kind = request.app.state.metrics.page()
    return Response(content, media_type=kind)


def _page() -> Response:
    """Return the page to try the model on."""
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
    text = files("mlm_infer.serve").joinpath("page.html").read_text(encoding="utf-8")
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})


def _given(question: BaseModel) -> dict[str, Any]:
    return question.model_dump(exclude_unset=True)


async def _json(make: Callable[[], Any]) -> Response:
    """Return an answer as JSON, made on a thread: it may be long, and the loop has other clients."""
    content = await asyncio.to_thread(lambda: json.dumps(make()).encode())
    return Response(content, HTTPStatus.OK, media_type="application/json")
