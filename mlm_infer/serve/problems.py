"""Errors as problem details (RFC 9457): one line that says what is wrong, with which value, and what to do."""

import difflib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlm_infer.errors import InputError, MlmInferError

__all__ = ["ProblemError", "problem", "tell_http", "tell_problem", "tell_wrong_body"]


class ProblemError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        detail: What is wrong, in one line.
        headers: Further headers of the answer.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    @classmethod
    def of(cls, error: Exception) -> "ProblemError":
        """Return what an error of the library is for a client."""
        if isinstance(error, cls):
            return error
        if isinstance(error, TimeoutError):
            return cls(
                HTTPStatus.SERVICE_UNAVAILABLE, "no answer in time; ask for less, or later", {"Retry-After": "1"}
            )
        if isinstance(error, InputError):
            return cls(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        detail = str(error) if isinstance(error, MlmInferError) else "the server failed; its log says why"
        return cls(HTTPStatus.INTERNAL_SERVER_ERROR, detail)

    def body(self) -> dict[str, Any]:
        """Return the details."""
        return {"type": "about:blank", "title": self.status.phrase, "status": int(self.status), "detail": self.detail}


def problem(told: ProblemError) -> JSONResponse:
    """Return the answer that tells a problem."""
    return JSONResponse(told.body(), int(told.status), told.headers, media_type="application/problem+json")


async def tell_problem(_request: Request, error: Exception) -> JSONResponse:
    """Answer a request that failed."""
    return problem(ProblemError.of(error))


async def tell_http(_request: Request, error: Exception) -> JSONResponse:
    """Answer a request that the framework refuses, such as one for a path that does not exist."""
    if not isinstance(error, HTTPException):
        raise TypeError(f"{error!r} is no HTTPException")
    return problem(ProblemError(HTTPStatus(error.status_code), str(error.detail), error.headers))


async def tell_wrong_body(request: Request, error: Exception) -> JSONResponse:
    """Answer a request whose body is not a question; the input is not repeated, since NaN, for example, is not JSON."""
    errors: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    first = errors[0]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.partition("/")[2].rpartition("+")[2] != "json":
        detail = f"the content-type is {kind!r}; send JSON with the header content-type: application/json"
        return problem(ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail))
    if first["type"] == "json_invalid":
        return problem(ProblemError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {first['ctx']['error']}"))
    # The type of a union's member is part of the place and says nothing to a client.
    place = ".".join(str(part) for part in first["loc"][1:] if "[" not in str(part) and part not in ("str", "int"))
    if first["type"] == "extra_forbidden":
        known = list(request.scope["route"].body_field.field_info.annotation.model_fields)
        near = difflib.get_close_matches(place, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        return problem(ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, f"there is no option {place!r}; {hint}"))
    return problem(ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place or 'the body'}: {first['msg']}"))
