"""The page of the search, and what it asks: Starlette on uvicorn, for this machine alone unless it is told otherwise.

    GET  /                 the page
    GET  /about            what is searched
    POST /search           hits of a query, see `search.queries`
    POST /words            {"text", "row"}: how much each word matters for a picture
    GET  /thumbnail/ROW    a small picture, /picture/ROW a whole one

What goes wrong is told as {"error": "one line"}. Pictures are files of the index, by their rows: there is no way to
name a path.
"""

import logging
import os
import secrets
import socket
import threading
import warnings
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from maskvlm_jax.data.decoding import MAX_PIXELS, DecodeError, picture_size
from maskvlm_jax.runtime import host as machine
from maskvlm_jax.runtime.errors import UserError, first_line
from maskvlm_jax.search import answers, limits, queries, safety, thumbnails
from maskvlm_jax.search.searching import Found, Part, Searcher
from maskvlm_jax.serving.pictures import PictureError

_PAGE = Path(__file__).with_name("page.html")
_KEPT = {"Cache-Control": "private, max-age=86400, immutable"}  # a row is one content; addresses differ by server start
_CONNECTIONS = 256
# Starlette's own words, and what is said instead.
_PLAIN = {"Not Found": "there is no such address", "Method Not Allowed": "this address does not do that"}


class _Handlers:
    """What answers each address."""

    def __init__(self, searcher: Searcher, page: str):
        self._searcher, self._page = searcher, page
        self._start = secrets.token_hex(4)
        self._bodies, self._thumbnails = limits.Bodies(), thumbnails.Thumbnails()
        # The model computes one query at a time: the second thread reads the next one's pictures meanwhile.
        self._searches = limits.Workers(2, waiting=32)
        self._files = limits.Workers(min(4, machine.cores()), waiting=512)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/about", self.about),
            Route("/search", self.search, methods=["POST"]),
            Route("/words", self.words, methods=["POST"]),
            Route("/picture/{row}", self.picture),
            Route("/thumbnail/{row}", self.thumbnail),
        ]

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={"Cache-Control": "no-cache"})

    async def about(self, request: Request) -> Response:
        searched = self._searcher
        names = {"pictures": searched.pictures, "folder": searched.folder.name, "model": searched.model_name}
        most = {"upload": limits.UPLOAD, "hits": queries.MOST_HITS}
        return JSONResponse(names | {"start": self._start, "most": most}, headers={"Cache-Control": "no-store"})

    async def search(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            query = queries.read(body)
            found = await self._searches.run(request, self._search, query)
        cut = any(self._is_cut(part.text) for part in query.parts)
        return JSONResponse(answers.plain(found) | {"cut": cut}, headers={"Cache-Control": "no-store"})

    def _is_cut(self, text: str) -> bool:
        """Whether a text has more tokens than the model reads."""
        model = self._searcher.model
        return bool(model.tokenizer.encode(text, model.max_length + 1)[2][-1])

    def _search(self, query: queries.Query) -> Found:
        try:
            for part in query.parts:
                if isinstance(part.image, bytes):
                    picture_size(part.image)  # its pixels are counted before any is decoded
            return self._searcher.search(query.parts, k=query.k, cutoff=query.cutoff)
        except (DecodeError, PictureError) as error:
            raise HTTPException(400, _of_picture(error)) from None
        except ValueError as error:
            raise HTTPException(400, first_line(error)) from None

    async def words(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            text, row = queries.read_words(body)
        weights = await self._searches.run(request, self._words, text, row)
        return JSONResponse({"words": weights}, headers={"Cache-Control": "no-store"})

    def _words(self, text: str, row: int) -> list[tuple[str, float]]:
        try:
            return self._searcher.word_weights(text, row)
        except (LookupError, PictureError):  # which names the file
            raise _no_picture() from None
        except ValueError as error:
            raise HTTPException(400, first_line(error)) from None

    async def picture(self, request: Request) -> Response:
        row = queries.row(request.path_params["row"])
        path, media, content = await self._files.run(request, self._whole, row)
        if media:
            return FileResponse(path, media_type=media, headers=_KEPT)
        return Response(content, media_type="image/jpeg", headers=_KEPT)

    async def thumbnail(self, request: Request) -> Response:
        row = queries.row(request.path_params["row"])
        content = await self._files.run(request, self._small, row)
        return Response(content, media_type="image/jpeg", headers=_KEPT)

    def _whole(self, row: int) -> tuple[Path, str, bytes]:
        """(file, its media type, nothing), or the picture's content where browsers do not show the file."""
        path = self._path(row)
        try:
            media = thumbnails.shown_as_it_is(path)
            return path, media, b"" if media else thumbnails.as_jpeg(path)
        except (OSError, DecodeError):
            raise _no_picture() from None

    def _small(self, row: int) -> bytes:
        path = self._path(row)
        try:
            return self._thumbnails.of(row, path)
        except (OSError, DecodeError):
            raise _no_picture() from None

    def _path(self, row: int) -> Path:
        """The file of a row; its name goes into no message."""
        try:
            return self._searcher.picture(row)
        except LookupError:
            raise _no_picture() from None


def _no_picture() -> HTTPException:
    return HTTPException(404, "there is no such picture, or not any more")


def _of_picture(error: ValueError) -> str:
    if isinstance(error, DecodeError) and error.kind == "too large":
        return f"the picture has too many pixels; {MAX_PIXELS // 10**6} million are the most"
    return "this is no picture that can be read"


async def _told(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": _PLAIN.get(error.detail, error.detail)}, error.status_code, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody is there to read it."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the search failed; the server's terminal has more"}, 500)


def app(searcher: Searcher, *, host: str = "127.0.0.1") -> ASGIApp:
    """The server as an ASGI application.

    Args:
        host: that it listens on, one of the names it answers to.
    """
    page = _PAGE.read_text(encoding="utf-8")
    handlers = {HTTPException: _told, ClientDisconnect: _gone, Exception: _failed}
    inner = Starlette(routes=_Handlers(searcher, page).routes(), exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return safety.Guard(inner, host=host, content_policy=safety.content_policy(page))


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: nothing can listen there.
    """
    if not 0 <= port < 65536:
        raise UserError(f"port is {port}; give a number from 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        # Those of looking a name up have negative numbers and good words of their own.
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror or str(error)
        message = f"{host} port {port} cannot be listened on ({reason}): choose another --port or --host"
        raise UserError(message) from error


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends without a word of the requests that it cuts off, each of which would be a traceback."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def _compile(searcher: Searcher) -> None:
    """The first search compiles the model's functions: seconds that the first query need not wait for."""
    searcher.search([Part(text="a")])


def serve(searcher: Searcher, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves the page until Ctrl-C, which is raised then.

    Args:
        host: to listen on; the default is reached from this machine alone.
        port: 0 = any that is free.

    Raises:
        UserError: nothing can listen there.
    """
    warnings.filterwarnings("ignore", message=".* tokens and are cut")  # the page tells it
    with _listening(host, port) as bound:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{bound.getsockname()[1]}/"
        print(f"{searcher.pictures:,} pictures can be searched at {address} (Ctrl-C ends it)", flush=True)
        if not safety.is_loopback(host):
            print("whoever reaches this address sees these pictures: there is no password", flush=True)
        threading.Thread(target=_compile, args=[searcher], daemon=True).start()
        config = uvicorn.Config(
            app(searcher, host=host),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="error",  # a client's mistake is answered, and not told here
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        _Server(config).run(sockets=[bound])
