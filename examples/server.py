"""Filling masks over HTTP; requests that come together share a run of the model.

pip install fastapi uvicorn
uvicorn --app-dir examples server:app

curl localhost:8000/fill -H 'content-type: application/json' -d '{"text": "A [MASK] film.", "top_k": 3}'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from mlm_infer import AsyncMaskFiller, InputError, MaskFiller


class Question(BaseModel):
    """What a client sends."""

    text: str
    top_k: int = 5
    targets: list[str] | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model when the server starts, in the process that serves."""
    async with AsyncMaskFiller(MaskFiller()) as filler:
        app.state.filler = filler
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/fill")
async def fill(question: Question, request: Request) -> dict[str, Any]:
    """Answer one question."""
    filler: AsyncMaskFiller = request.app.state.filler
    try:
        result = await filler.fill(question.text, top_k=question.top_k, targets=question.targets, timeout=10)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except TimeoutError as error:
        raise HTTPException(503, "too busy; try again") from error
    return result.to_dict()
