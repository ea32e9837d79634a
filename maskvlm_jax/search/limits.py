"""How much the server takes on at once: bodies in memory, and work in threads."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

UPLOAD = 20 << 20  # bytes of a body
_TOGETHER = 4 * UPLOAD  # of all bodies that are held at once
_SECONDS = 60  # in which a body must have arrived

_P, _R = ParamSpec("_P"), TypeVar("_R")


def busy() -> HTTPException:
    return HTTPException(503, "too many ask at once; try again", {"Retry-After": "1"})


def _too_large() -> HTTPException:
    return HTTPException(413, f"a picture may have {UPLOAD >> 20} MB at most", {"Connection": "close"})


class Bodies:
    """Bodies of requests, in memory while they are worked on; each, and all together, no larger than a limit."""

    def __init__(self):
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request.

        Raises:
            HTTPException: 413 where it is too large, by what its header says or by what arrives; 408 where it takes
                too long; 503 where the others leave no room.
            ClientDisconnect: it did not come to its end.
        """
        declared = request.headers.get("content-length", "")
        if len(declared) > 18 or (declared.isdecimal() and int(declared) > UPLOAD):
            raise _too_large()
        content = bytearray()
        try:
            with self._in_time():
                async for chunk in request.stream():
                    if len(content) + len(chunk) > UPLOAD:
                        raise _too_large()
                    if self._held + len(chunk) > _TOGETHER:
                        raise busy()
                    content += chunk
                    self._held += len(chunk)
            yield bytes(content)
        finally:
            self._held -= len(content)

    @staticmethod
    @contextlib.contextmanager
    def _in_time():
        try:
            with anyio.fail_after(_SECONDS):
                yield
        except TimeoutError:
            raise HTTPException(408, f"the query did not arrive within {_SECONDS} seconds") from None


class Workers:
    """Runs functions in threads, and lets only so many wait.

    Args:
        threads: that work at once.
        waiting: how many more may wait; the next is refused.
    """

    def __init__(self, threads: int, waiting: int):
        self._turns, self._threads = anyio.CapacityLimiter(threads), anyio.CapacityLimiter(threads)
        self._waiting = waiting

    async def run(self, request: Request, function: Callable[_P, _R], *args: _P.args) -> _R:
        """The function's result.

        Raises:
            HTTPException: 503 where too many wait already.
            ClientDisconnect: who asked has gone before it began.
        """
        if self._turns.statistics().tasks_waiting >= self._waiting:
            raise busy()
        async with self._turns:
            if await request.is_disconnected():  # typed on: only the last query of a page is worth an answer
                raise ClientDisconnect
            # At Ctrl-C nobody waits for what is half done.
            return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._threads)
