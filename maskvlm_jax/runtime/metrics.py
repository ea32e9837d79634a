"""What one sees of a run: a line on the terminal, metrics.jsonl, TensorBoard events."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from maskvlm_jax.runtime import buckets, files
from maskvlm_jax.runtime.errors import writing

SHORT = {"masked_image": "image", "masked_text": "text", "contrastive": "contrast", "matching": "match"}


_UPLOADED_EVERY = 60.0  # seconds


class NoWriter:
    """Stands in for `MetricWriter` in the processes that do not write."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...
    def figure(self, step: int, name: str, image: np.ndarray) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class MetricWriter:
    """Appends to `metrics.jsonl` (one object a line: step, split, values) and to TensorBoard events.

    To a bucket nothing can be appended: there both grow in a local folder, and are uploaded whole once a minute, with
    every checkpoint, and at the end.

    Args:
        workdir: the run's folder.
        start: the step the run goes on from; lines of later steps, written by a run that was killed before it saved,
            are taken out.
        evaluate_again: take out evaluations of step `start` too: they are made anew.
    """

    def __init__(self, workdir: Path, start: int, *, evaluate_again: bool = False):
        self._remote = workdir if buckets.is_remote(workdir) else None
        folder = Path(tempfile.mkdtemp(prefix="maskvlm_jax-")) if self._remote else workdir
        self._path, self._events_path = folder / "metrics.jsonl", folder / "events"
        self._uploaded = time.monotonic()
        with writing(self._path):
            if self._remote and (self._remote / self._path.name).exists():
                self._path.write_bytes((self._remote / self._path.name).read_bytes())
            if self._path.exists():
                _drop_after(self._path, start, evaluate_again)
            self._file = self._path.open("a", encoding="utf-8")
        with writing(self._events_path):
            # Not its SummaryWriter, whose thread would meet a full disk alone and go on.
            self._events_path.mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._events_path / "events"))
            if start:
                purge = Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
                self._events.write_event(purge)
            self._events.flush()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        with writing(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._file.flush()
            # A bucket mounted as a folder gets a file when it is closed or synchronised: a killed run would leave
            # nothing there. It costs milliseconds on a disk, an upload of the file on a bucket; lines are rare.
            os.fsync(self._file.fileno())
        self._add(step, *(summary.scalar(f"{split}/{name}", value) for name, value in values.items()))
        if time.monotonic() - self._uploaded > _UPLOADED_EVERY:
            self.flush()

    def figure(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, (Y, X, 3) uint8, for TensorBoard."""
        self._add(step, summary.image(name, image, dataformats="HWC"))

    def _add(self, step: int, *summaries: Any) -> None:
        with writing(self._events_path):
            for value in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=value))
            self._events.flush()

    def flush(self) -> None:
        """Brings a bucket up to date; on disk all is there already."""
        if self._remote is None:
            return
        for file in (self._path, *self._events_path.iterdir()):
            target = self._remote / file.relative_to(self._path.parent)
            with writing(target):
                target.write_bytes(file.read_bytes())
        self._uploaded = time.monotonic()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()
        with writing(self._events_path):
            self._events.close()
        self.flush()
        if self._remote:
            shutil.rmtree(self._path.parent)


def _drop_after(path: Path, step: int, evaluate_again: bool) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            again = evaluate_again and values["step"] == step and "loss" not in values
            if values["step"] <= step and not again:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # a line that was cut off by a kill
    files.write_text(path, "".join(kept))


class Meter:
    """Averages metrics between two log lines and measures speed and the share of time spent waiting for data.

    Args:
        batch_size: pairs a step.
        steps: the run's last step.
    """

    def __init__(self, *, batch_size: int, steps: int):
        self._batch_size, self._steps, self._seconds_a_step = batch_size, steps, 0.0
        self.restart()

    def restart(self) -> None:
        """Starts the means and the clock anew: compiling, evaluating and saving are not part of a step."""
        self._clock, self._waited, self._sums, self._count = time.monotonic(), 0.0, {}, 0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds one step's metrics."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1

    @property
    def empty(self) -> bool:
        return self._count == 0

    def values(self) -> dict[str, float]:
        """Mean metrics, pairs_per_second and data_wait (a share) since the last call of `restart`."""
        values = {name: total / self._count for name, total in self._sums.items()}
        seconds = time.monotonic() - self._clock
        self._seconds_a_step = seconds / self._count
        return values | {
            "pairs_per_second": self._batch_size / self._seconds_a_step,
            "data_wait": self._waited / seconds,
        }

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """One line for the terminal."""
        parts = [
            f"{SHORT.get(name.split('/')[0], name.split('/')[0])} {value:.3f}"
            for name, value in values.items()
            if name.endswith("/loss")
        ]
        left = duration((self._steps - step) * self._seconds_a_step)
        return (
            f"step {step}/{self._steps}  loss {values['loss']:.3f} ({', '.join(parts)})  "
            f"{values['pairs_per_second']:.1f} pairs/s  data wait {values['data_wait']:.1%}  {left} left"
        )


def duration(seconds: float) -> str:
    """'1h05m', '12m30s' or '45s'."""
    seconds = math.ceil(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def table(metrics: Mapping[str, float]) -> str:
    """Names and values in two aligned columns."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"  {name:<{width}}  {value:10.4f}" for name, value in metrics.items())
