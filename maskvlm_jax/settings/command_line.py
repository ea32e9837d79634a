"""The command line that all programs share: flags to a config and a workdir, errors to one line and an exit status."""

import difflib
import itertools
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.runtime import buckets, host
from maskvlm_jax.runtime.errors import Absent, Stopped, UserError, first_line, is_of_store
from maskvlm_jax.settings.plain_values import check_blocks_given, expand_paths, flatten
from maskvlm_jax.settings.run_folder import of_a_run
from maskvlm_jax.settings.run_length import set_aside
from maskvlm_jax.settings.upgrade import RENAMED

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:structure], see configs/", lock_config=True)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "joins several processes: auto, or HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("processes", -1, "how many join, where the coordinator is HOST:PORT")
_PROCESS = flags.DEFINE_integer("process", -1, "which of them this is, from 0")
_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "seconds that all processes must join in")
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; runs/NAME by default", short_name="w")

_NO_CONFIG = "give a config, such as --config=configs/pretrain.py"


def parse(argv: list[str], *, tasks: tuple[str, ...]) -> tuple[ConfigDict, Path]:
    """Reads the command line: (config, workdir).

    Args:
        tasks: values of `config.task` that the program is for.

    Raises:
        UserError: an unknown flag, key, value or type; the message names the nearest.
    """
    if _asks_for_help(argv):
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
        message = _last_line(error, _config_file(argv)[0])
        raise UserError(_unknown_key(argv, message) if message.startswith("Could not parse") else message) from error
    if config is None:
        raise UserError(_NO_CONFIG)
    if len(rest) > 1:
        raise UserError(f"unknown argument {rest[1]!r}; flags start with --")
    if task not in tasks:
        raise UserError(f"config.task is {task!r}; this program takes a config of {' or '.join(tasks)}")
    workdir = buckets.folder(_WORKDIR.value or default_workdir(config))
    if "init" in config:
        encoders.complete(config, config_flags.get_override_values(flags.FLAGS["config"]), of_a_run(workdir))
    return config, workdir


def positional(argv: list[str]) -> list[str]:
    """Reads the command line of a program without a config: what is no flag.

    Raises:
        UserError: an unknown flag or value.
    """
    if _asks_for_help(argv):
        print("\n".join(_flags_help(sys.argv[0])))
        sys.exit(0)
    try:
        return flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from error


def _asks_for_help(argv: list[str]) -> bool:
    return bool({"--help", "-h", "-help", "--helpfull"} & set(argv[1:]))


def _flags_help(*modules: str) -> Iterator[str]:
    """What the program is, and the flags that modules define."""
    yield (sys.modules["__main__"].__doc__ or "").strip()
    yield "\nFlags:"
    for module in modules:
        for flag in flags.FLAGS.flags_by_module_dict().get(module, ()):
            yield f"  --{flag.name:<18}{flag.help}"


def _help(argv: list[str]) -> Iterator[str]:
    """What the program is, its flags, and the values of the config that was given."""
    yield from _flags_help(__name__, sys.argv[0])  # absl's name of the program that was started
    path, structure = _config_file(argv)
    if not path:
        yield "\nWith a --config, --help lists its values, each of which --config.KEY=VALUE sets."
        return
    yield f"\nValues of {path}{':' * bool(structure)}{structure}, each of which --config.KEY=VALUE sets:"
    yield from (f"  {key} = {value!r}" for key, value in flatten(_defaults(argv).to_dict()).items())


def _unknown_key(argv: list[str], message: str) -> str:
    """Names the key of a --config.KEY=VALUE flag that is not there, and the nearest that is."""
    there = list(flatten(_defaults(argv).to_dict()))
    given = [re.match(r"--?config\.([^=]*)", arg) for arg in argv]
    for key in (found[1] for found in given if found):
        if key in RENAMED:
            return f"there is no config key {key} any more; it is {RENAMED[key]}"
        if key not in there:
            # A key that was put into the wrong block has the right last part.
            same = [other for other in there if other.rpartition(".")[2] == key.rpartition(".")[2]]
            near = difflib.get_close_matches(key, same, n=1, cutoff=0.0) or difflib.get_close_matches(key, there, n=1)
            return f"there is no config key {key}" + (f"; did you mean {near[0]}?" if near else "")
    return message


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
    message = re.sub(r"^(\w+Error|Exception): ", "", missing or lines[-1])
    found = re.search(r"No such file or directory: '(.*)'$", message)
    if found and found[1] == path:  # a config may open files of its own
        return f"there is no config file {path!r}; {_NO_CONFIG}" if path else _NO_CONFIG
    return re.sub(r"\('Non-boolean argument to boolean flag', .*\)$", "give True or False", message)


def join() -> None:
    """Joins the processes of a run, as the flags say; see `processes.join`."""
    from maskvlm_jax.runtime import processes  # not above, see `_joined`

    processes.join(_COORDINATOR.value, processes=_PROCESSES.value, process=_PROCESS.value, timeout=_TIMEOUT.value)


def default_workdir(config: ConfigDict) -> str:
    """Where a run goes if no flag says so: runs/NAME, or a folder of that name in the workdir that is scored."""
    if config.task == "evaluate":
        return f"{config.checkpoint}/{config.name}"
    return f"runs/{config.name}"


def run(work: Callable[[], None], *, resumes: bool = False) -> int:
    """Does what a command is for; returns the exit status.

    What the user can mend is one line, and so is Ctrl-C. Where this process is one of several of a run, the others hear
    of its end.

    Args:
        resumes: the same command goes on where a signal stopped it.
    """
    try:
        work()
        sys.stdout.flush()
    except (UserError, OSError) as error:  # a folder that vanished: the machine's fault, reported like the user's
        if isinstance(error, BrokenPipeError) and host.output_is_gone():
            if processes := _joined():
                processes.fail(128 + signal.SIGPIPE, "nobody reads its output any more")
            return 128 + signal.SIGPIPE
        return _tell(error, error.status if isinstance(error, UserError) else UserError.status)
    except Stopped as stopped:
        print(stopped, flush=True)
        if stopped.alone and (processes := _joined()):
            processes.fail(stopped.status, str(stopped))
        return _finish(stopped.status)
    except (Exception, KeyboardInterrupt) as error:
        if is_of_store(error):
            return _tell(UserError(f"a bucket cannot be used: {first_line(error)}"), UserError.status)
        if (processes := _joined()) and processes.several():
            processes.expect_news()
            traceback.print_exc()
            message = (str(error).strip() or "no message").splitlines()[0]
            processes.fail(1, f"{type(error).__name__}: {message}; its log has more")
            return 1
        if not isinstance(error, KeyboardInterrupt):  # outside of the training loop, which has its own answer
            raise
        stopped = Stopped(signal.SIGINT, None) if resumes else "stopped"
        print(stopped, file=sys.stdout if resumes else sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return _finish(0)


def _joined() -> ModuleType | None:
    """`runtime.processes` once `join` was called; before, help and mistyped flags are answered without JAX."""
    return sys.modules.get("maskvlm_jax.runtime.processes")


def _finish(status: int) -> int:
    """The end of a command that did not fail: waits for the other processes of the run."""
    if processes := _joined():
        processes.finish()
    return status


def _one_line(error: Exception) -> str:
    """A name in the message may have a line break in it."""
    return "error: " + str(error).replace("\n", "\\n")


def _tell(error: Exception, status: int) -> int:
    """Prints an error as one line, here and in the other processes of the run."""
    print(_one_line(error), file=sys.stderr, flush=True)
    if processes := _joined():
        processes.fail(status, str(error))
    return status


def leave(status: int) -> NoReturn:
    """Ends the process; after an error or Ctrl-C at once, or libraries' threads would tell of their own end after it.

    A damaged checkpoint, for one, leaves reads in flight that fail as the interpreter shuts down.
    """
    if status in (UserError.status, Absent.status, 128 + signal.SIGINT):
        host.end_at_once(status)
    sys.exit(status)
