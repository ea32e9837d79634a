"""Does what a config file says, with the values that flags give: pretrain, finetune, evaluate, ablate or prepare.

python -m maskvlm_jax.main --config=configs/pretrain.py
python -m maskvlm_jax.main --config=configs/pretrain.py:size=small,data=flickr8k --config.data.root=FOLDER
python -m maskvlm_jax.main --config=configs/evaluate.py --config.checkpoint=WORKDIR
"""

from maskvlm_jax import host

if __name__ == "__main__":
    host.use_huge_pages()  # before the slow imports, which it would repeat

import difflib
import importlib
import itertools
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from maskvlm_jax import buckets, processes
from maskvlm_jax.config import check_blocks_given, expand_paths, flatten
from maskvlm_jax.errors import Absent, Stopped, UserError, first_line, is_of_store
from maskvlm_jax.run_length import set_aside

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:structure], see configs/", lock_config=True)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "joins several processes: auto, or HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("processes", -1, "how many join, where the coordinator is HOST:PORT")
_PROCESS = flags.DEFINE_integer("process", -1, "which of them this is, from 0")
_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "seconds that all processes must join in")
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; runs/NAME by default", short_name="w")

_NO_CONFIG = "give a config, such as --config=configs/pretrain.py"

TASKS = {
    "pretrain": "maskvlm_jax.train",
    "finetune": "maskvlm_jax.train",
    "evaluate": "maskvlm_jax.evaluate",
    "ablate": "maskvlm_jax.ablate",
    "prepare": "maskvlm_jax.prepare",
}


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Reads the command line: (config, workdir).

    Raises:
        UserError: an unknown flag, key, value or type; the message names the nearest.
    """
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print("\n".join(_help(argv)))
        sys.exit(0)
    for arg in argv:
        if not arg.isascii() and arg != arg.encode(errors="ignore").decode():
            remedy = "rename what it names" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1"
            raise UserError(f"{arg!r} is not UTF-8 text; {remedy}")
    argv = [re.sub(r"^(--?config=)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), arg) for arg in argv]
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        if config is not None:
            given = config_flags.get_override_values(flags.FLAGS["config"])
            if any(isinstance(value, ConfigDict | dict) for value in given.values()):
                check_blocks_given(config, _defaults(argv))
            expand_paths(config)
            set_aside(config, set(given))
        task = None if config is None else config.get("task")
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_key(argv, str(error))) from error
    except (flags.Error, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        told = _last_line(error, _config_file(argv)[0])
        raise UserError(_unknown_key(argv, told) if told.startswith("Could not parse") else told) from error
    if config is None:
        raise UserError(_NO_CONFIG)
    if len(rest) > 1:
        raise UserError(f"unknown argument {rest[1]!r}; flags start with --")
    if task not in TASKS:
        raise UserError(f"config.task is {task!r}; choose among {', '.join(TASKS)}")
    return config, buckets.folder(_WORKDIR.value or default_workdir(config))


def _help(argv: list[str]) -> Iterator[str]:
    """What the program is, its flags, and the values of the config that was given."""
    yield (sys.modules["__main__"].__doc__ or __doc__).strip()
    yield "\nFlags:"
    for module in ("maskvlm_jax.main", sys.argv[0]):  # absl's name of the program that was started
        for flag in flags.FLAGS.flags_by_module_dict().get(module, ()):
            yield f"  --{flag.name:<18}{flag.help}"
    path, structure = _config_file(argv)
    if not path:
        yield "\nWith a --config, --help lists its values, each of which --config.KEY=VALUE sets."
        return
    yield f"\nValues of {path}{':' * bool(structure)}{structure}, each of which --config.KEY=VALUE sets:"
    yield from (f"  {key} = {value!r}" for key, value in flatten(_defaults(argv).to_dict()).items())


def _unknown_key(argv: list[str], told: str) -> str:
    """Names the key of a --config.KEY=VALUE flag that is not there, and the nearest that is."""
    there = list(flatten(_defaults(argv).to_dict()))
    given = [re.match(r"--?config\.([^=]*)", arg) for arg in argv]
    for key in (found[1] for found in given if found):
        if key not in there:
            # A key that was put into the wrong block has the right last part.
            same = [other for other in there if other.rpartition(".")[2] == key.rpartition(".")[2]]
            near = difflib.get_close_matches(key, same, n=1, cutoff=0.0) or difflib.get_close_matches(key, there, n=1)
            return f"there is no config key {key}" + (f"; did you mean {near[0]}?" if near else "")
    return told


def _config_file(argv: list[str]) -> tuple[str, str]:
    """The path and the structure that --config gives; "" where it is not there."""
    joined = [re.fullmatch(r"--?config=(.*)", arg) for arg in argv]
    apart = [value for name, value in itertools.pairwise(argv) if name in ("--config", "-config")]
    given = [*(found[1] for found in joined if found), *apart]
    path, _, structure = (given[-1] if given else "").partition(":")
    return path, structure


def _defaults(argv: list[str]) -> ConfigDict:
    """The config file's values before any flag: the flags' own copy is not there where one of them failed."""
    path, structure = _config_file(argv)
    if not Path(path).is_file():
        raise UserError(f"there is no config file {path!r}; {_NO_CONFIG}" if path else _NO_CONFIG)
    made = runpy.run_path(path)
    if "get_config" not in made:
        raise UserError(f"{path} has no function get_config; {_NO_CONFIG}")
    return made["get_config"](structure)


def _last_line(error: Exception, path: str) -> str:
    """The last line of an error without the names of exception classes: the cause, where libraries wrap it.

    Args:
        path: of the config file.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Path to config file is an empty string" in str(error):
        return _NO_CONFIG
    missing = next((line for line in lines if "No such file" in line), None)
    told = re.sub(r"^(\w+Error|Exception): ", "", missing or lines[-1])
    found = re.search(r"No such file or directory: '(.*)'$", told)
    if found and found[1] == path:  # a config may open files of its own
        return f"there is no config file {path!r}; {_NO_CONFIG}" if path else _NO_CONFIG
    return re.sub(r"\('Non-boolean argument to boolean flag', .*\)$", "give True or False", told)


def default_workdir(config: ConfigDict) -> str:
    """Where a run goes that was not told: runs/NAME, or the evaluation folder of the scored workdir."""
    if config.task == "evaluate":
        return f"{config.checkpoint}/evaluation"
    return f"runs/{config.name}"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()
    try:
        config, workdir = parse(sys.argv if argv is None else argv)
        host.prepare_accelerator(deterministic=config.get("deterministic", False))
        joined = {"processes": _PROCESSES.value, "process": _PROCESS.value, "timeout": _TIMEOUT.value}
        processes.join(_COORDINATOR.value, **joined)
        importlib.import_module(TASKS[config.task]).run(config, workdir)
    except UserError as error:
        return _tell(error, error.status)
    except OSError as error:  # a folder that vanished: the machine's fault, told like the user's
        return _tell(error, UserError.status)
    except Stopped as stopped:
        print(stopped, flush=True)
        if stopped.alone:
            processes.fail(stopped.status, str(stopped))
        processes.finish()
        return stopped.status
    except (Exception, KeyboardInterrupt) as error:
        if is_of_store(error):
            return _tell(UserError(f"a bucket cannot be used: {first_line(error)}"), UserError.status)
        if not processes.several():
            if isinstance(error, KeyboardInterrupt):  # outside of the training loop, which has its own answer
                stopped = Stopped(signal.SIGINT, None)
                print(stopped, flush=True)
                return stopped.status
            raise
        processes.expect_news()
        traceback.print_exc()
        told = (str(error).strip() or "no message").splitlines()[0]
        processes.fail(1, f"{type(error).__name__}: {told}; its log has more")
        return 1
    processes.finish()
    return 0


def guarded(work: Callable[[], None]) -> int:
    """Runs what a command of one process does; returns the exit status. Errors and Ctrl-C are one line."""
    try:
        work()
    except (UserError, OSError) as error:
        print(_one_line(error), file=sys.stderr, flush=True)
        return error.status if isinstance(error, UserError) else UserError.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return 0


def _one_line(error: Exception) -> str:
    """A name in the message may have a line break in it."""
    return "error: " + str(error).replace("\n", "\\n")


def _tell(error: Exception, status: int) -> int:
    """Prints an error as one line, here and in the other processes of the run."""
    print(_one_line(error), file=sys.stderr, flush=True)
    processes.fail(status, str(error))
    return status


def leave(status: int) -> NoReturn:
    """Ends the process; after an error or Ctrl-C at once, or libraries' threads would tell of their own end after it.

    A damaged checkpoint, for one, leaves reads in flight that fail as the interpreter shuts down.
    """
    if status in (UserError.status, Absent.status, 128 + signal.SIGINT):
        host.end_at_once(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
