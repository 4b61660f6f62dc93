"""Who may ask, how large, and how many at once: ASGI middleware in front of the application."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from .limits import Limits
from .metrics import Metrics
from .problems import ProblemError, problem

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN = frozenset(["/", "/health", "/ready"])
"""Paths without a secret."""


class Guard:
    """Refuses requests without the token, beyond the limits, or too many at once, and measures the others.

    Args:
        app: The application behind it.
        limits: The limits.
        metrics: Counts requests.
        token: What `Authorization: Bearer` must hold; None asks for nothing.
    """

    def __init__(self, app: App, *, limits: Limits, metrics: Metrics, token: str | None) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._wanted = None if token is None else f"Bearer {token}".encode()
        self._inside = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499  # the client went away, as nginx calls it

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check_token(scope)
                if scope["method"] == "POST":
                    await self._answer(scope, receive, note)
                else:
                    await self._app(scope, receive, note)
            except ProblemError as told:
                await problem(told)(scope, receive, note)
        finally:
            # The path as the application knows it: strangers can ask for any.
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _check_token(self, scope: Message) -> None:
        if self._wanted is None or scope["path"] in _OPEN:
            return
        if not hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._wanted):
            raise ProblemError(
                HTTPStatus.UNAUTHORIZED,
                "this server wants a token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._inside >= self._limits.requests:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._inside} requests are in progress, as many as this server takes at once; ask again",
                {"Retry-After": "1"},
            )
        self._inside += 1
        self._metrics.in_progress.set(self._inside)
        try:
            body = await self._read(receive)
            await self._answer_while_there(scope, body, receive, send)
        finally:
            self._inside -= 1
            self._metrics.in_progress.set(self._inside)

    async def _answer_while_there(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Answer a body; end as soon as the client has gone, or takes nothing of the answer until the timeout."""
        gone, answering = asyncio.Event(), asyncio.current_task()

        def end() -> None:
            gone.set()
            if answering is not None:
                answering.cancel()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            end()

        replay = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            message = next(replay, None)
            if message is None:
                await gone.wait()
            return message or {"type": "http.disconnect"}

        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await send(message)
            except TimeoutError:
                end()
                # Until the cancellation arrives.
                await asyncio.Event().wait()

        watching = asyncio.create_task(watch())
        try:
            await self._app(scope, again, in_time)
        except asyncio.CancelledError:
            if not gone.is_set():
                raise
        finally:
            watching.cancel()

    async def _read(self, receive: Receive) -> bytes:
        """Read a body at once, so that a slow client holds no more than its place."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ProblemError(HTTPStatus.BAD_REQUEST, "the body ended early")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body:
                        raise ProblemError(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                            f"the body has more than {self._limits.body:,} bytes; send fewer texts at once",
                            {"Connection": "close"},
                        )
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, f"no whole body within {self._limits.seconds} s") from None
