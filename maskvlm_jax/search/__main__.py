"""Finds pictures in a folder by words, by other pictures, or by sums of both.

    python -m maskvlm_jax.search index FOLDER --model=RUN --index=DIR     embeds what is new; again: goes on, or updates
    python -m maskvlm_jax.search update DIR                               the same, of an index that is there
    python -m maskvlm_jax.search query "a dog on the beach" --index=DIR   also --image=FILE, --like=ROW, --without=TEXT
    python -m maskvlm_jax.search page --index=DIR                         the same in a browser
    python -m maskvlm_jax.search export OUT.npz --index=DIR               or .parquet, .csv: names and vectors

`python -m maskvlm_jax.search COMMAND --help` lists the flags of a command. In place of FOLDER, --split=test writes the
pictures of the run's own split into DIR and indexes them.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import answers, exporting, making, stores
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search.searching import Part, Searcher
from maskvlm_jax.serving import model as serving
from maskvlm_jax.settings import command_line


class _Parser(argparse.ArgumentParser):
    """What is wrong is one line, as in all commands."""

    def __init__(self, name: str, text: str):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m maskvlm_jax.search {name}", description=text, formatter_class=style)

    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help lists what there is")


def _model(argv: Sequence[str], parser: _Parser) -> argparse.Namespace:
    parser.add_argument("--model", default="", help="workdir of a run, or an export")
    return parser.parse_args(argv)


def _index(argv: Sequence[str]) -> None:
    parser = _Parser("index", "Makes an index of a folder's pictures, or goes on with it, or brings it up to date.")
    parser.add_argument("folder", nargs="?", default="", help="pictures, also in folders below it; only read")
    parser.add_argument("--index", required=True, help="folder of the index, outside of FOLDER")
    parser.add_argument("--split", default="", help="in place of FOLDER: pictures of the run's own data, e.g. test")
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument("--weights", default="params", choices=("params", "ema"))
    parser.add_argument("--store", default="exact", help=f"where vectors are: {', '.join(stores.STORES)}")
    parser.add_argument("--url", default="", help="of --store=milvus: a server, or a file NAME.db for Milvus Lite")
    parser.add_argument("--cache", default="", help="usearch: a graph of neighbours, for millions of pictures")
    args = _model(argv, parser)
    if not args.model or bool(args.folder) == bool(args.split):
        raise UserError("give FOLDER or --split, and --model=RUN")
    stores.check(args.store, args.url, args.cache)
    if args.folder:  # before the seconds of a model
        making.checked(Path(args.index), args.folder)
    model = serving.load(args.model, step=args.step, weights=args.weights)
    place = making.Place(args.store, args.url, args.cache)
    print(making.index(Path(args.index), args.folder, model, args.model, args.weights, place, split=args.split))


def _update(argv: Sequence[str]) -> None:
    parser = _Parser("update", "Brings an index up to date with its folder.")
    parser.add_argument("index", help="folder of the index")
    parser.add_argument("--folder", default="", help="where the pictures are by now, if they were moved")
    parser.add_argument("--cache", default=None, help="usearch, or none to leave it away again")
    args = _model(argv, parser)
    print(making.update(Path(args.index), folder=args.folder, model=args.model, cache=args.cache))


# Flags of `query` that have no value.
_ALONE = ("--json", "--help", "-h")


def _in_order(argv: Sequence[str]) -> list[str]:
    """Arguments with each text as a flag, so that all parts of a query keep their order."""
    found, left = [], list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            word = f"--text={word}"
        elif "=" not in word and word not in _ALONE and left:
            word = f"{word}={left.pop(0)}"
        found.append(word)
    return found


class _Add(argparse.Action):
    """Appends (name of the flag, value) to the parts."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.parts = [*namespace.parts, (self.dest, values)]


def _query(argv: Sequence[str]) -> None:
    parser = _Parser("query", "Finds the pictures that are nearest to the sum of all parts of a query.")
    parser.set_defaults(parts=[])
    parser.add_argument("--index", default="", help="folder of the index; or the first argument")
    parser.add_argument("--text", action=_Add, help="the flag may be left out")
    parser.add_argument("--image", action=_Add, help="a file; may be given several times, as all parts")
    parser.add_argument("--like", action=_Add, type=int, metavar="ROW", help="a picture of the index")
    parser.add_argument("--without", action=_Add, metavar="TEXT", help="a text that is subtracted")
    parser.add_argument("--weights", default="", help="of all parts in their order, such as 1,0.5,-1")
    parser.add_argument("-k", type=int, default=10, help="how many pictures are wanted")
    parser.add_argument("--rerank", type=int, default=64, help="how many are matched with the text; 0 = none")
    parser.add_argument("--cutoff", type=float, default=0.5, help="the probability that counts as a match")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = _model(_in_order(argv), parser)
    if not args.index and args.parts and args.parts[0][0] == "text":
        args.index = args.parts.pop(0)[1]
    if not args.index or not args.parts:
        raise UserError('give a query and an index: python -m maskvlm_jax.search query "a dog" --index=DIR')
    parts = _parts(args.parts, args.weights)
    searcher = Searcher.open(args.index, model=args.model)
    with warnings.catch_warnings(record=True) as told:
        try:
            found = searcher.search(parts, k=args.k, rerank=args.rerank, cutoff=args.cutoff)
        except ValueError as error:
            raise UserError(str(error)) from error
    for warning in dict.fromkeys(str(one.message) for one in told):
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(answers.plain(found)) if args.json else answers.table(found))


def _parts(given: Sequence[tuple[str, str | int]], weights: str) -> list[Part]:
    """The parts of a query."""
    try:
        numbers = [float(number) for number in weights.split(",")] if weights else [1.0] * len(given)
    except ValueError as error:
        raise UserError(f"--weights is {weights!r}; give numbers, such as 1,0.5,-1") from error
    if len(numbers) != len(given):
        raise UserError(f"--weights has {len(numbers)} numbers, and the query {len(given)} parts; give one for each")
    parts = []
    for (name, value), weight in zip(given, numbers, strict=True):
        if name == "without":
            name, weight = "text", -weight
        parts.append(Part(**{name: value}, weight=weight))
    return parts


def _page(argv: Sequence[str]) -> None:
    parser = _Parser("page", "Serves a page that searches an index, to this machine alone unless --host says more.")
    parser.add_argument("--index", required=True, help="folder of the index")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = _model(argv, parser)
    searcher = Searcher.open(args.index, model=args.model)
    from maskvlm_jax.search import server  # and with it a web server

    server.serve(searcher, host=args.host, port=args.port)


def _export(argv: Sequence[str]) -> None:
    parser = _Parser("export", "Writes names and vectors for other programs.")
    parser.add_argument("out", help="OUT.npz, OUT.parquet or OUT.csv")
    parser.add_argument("--index", required=True, help="folder of the index")
    args = parser.parse_args(argv)
    if not facts_of.is_index(Path(args.index)):
        raise UserError(f"there is no index in {args.index}")
    print(f"{exporting.export(Path(args.index), Path(args.out)):,} pictures in {args.out}")


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "index": _index,
    "update": _update,
    "query": _query,
    "page": _page,
    "export": _export,
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()
    name, *rest = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if name in ("--help", "-h"):
        print((__doc__ or "").strip())
        return 0

    def work() -> None:
        if name not in _COMMANDS:
            raise UserError(f"there is no command {name!r}; give {', '.join(_COMMANDS)}")
        host.prepare_accelerator()
        host.keep_compiled_programs()  # on CPUs too: a query is a process that computes for a moment
        _COMMANDS[name](rest)

    return command_line.run(work, resumes=name in ("index", "update"))


if __name__ == "__main__":
    command_line.leave(main())
