"""Fills masks over HTTP; concurrent requests share runs of the model.

pip install fastapi uvicorn
uvicorn --app-dir examples server:app

curl localhost:8000/fill -H 'content-type: application/json' -d '{"text": "A [MASK] film.", "top_k": 3}'
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from mlm_infer import AsyncMaskFiller, FillResult, InputError, MaskFiller


class Question(BaseModel):
    """The body of a request."""

    text: str
    top_k: int = 5
    targets: list[str] | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model when the server starts, in the serving process."""
    async with AsyncMaskFiller(MaskFiller()) as filler:
        app.state.filler = filler
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(RequestValidationError)
async def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer an invalid request with one line that does not repeat the input: NaN, for example, is not JSON."""
    first = error.errors()[0]
    return JSONResponse({"detail": f"{'.'.join(map(str, first['loc'][1:])) or 'the body'}: {first['msg']}"}, 422)


@app.post("/fill")
async def fill(question: Question, request: Request) -> Response:
    """Answer a request."""
    filler: AsyncMaskFiller = request.app.state.filler
    try:
        result = await filler.fill(question.text, top_k=question.top_k, targets=question.targets, timeout=10)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except TimeoutError as error:
        raise HTTPException(503, "too busy; try again") from error
    # An answer may have thousands of predictions, and the loop has other clients.
    return Response(await asyncio.to_thread(as_json, result), media_type="application/json")


def as_json(result: FillResult) -> str:
    """Serialize a result."""
    return json.dumps(result.to_dict())
