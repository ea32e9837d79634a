"""What each number of a config may be; one table for the configs of every task."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from maskvlm_jax.runtime.errors import UserError


class Range(NamedTuple):
    """Values from `low` to `high`, the ends themselves where `closed` says so; `also` is allowed beside them.

    whole: only whole numbers.
    """

    low: float
    high: float = math.inf
    closed: tuple[bool, bool] = (True, True)
    also: float | None = None
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is in the range; what is no number or has no end is in none."""
        if not math.isfinite(value):
            return False
        above = value >= self.low if self.closed[0] else value > self.low
        below = value <= self.high if self.closed[1] else value < self.high
        return (above and below) or value == self.also

    def __str__(self) -> str:
        if self.closed == (True, True) and self.high < math.inf:
            return f"{self.low:g} to {self.high:g}"
        low = f"{'at least' if self.closed[0] else 'more than'} {self.low:g}"
        high = "" if self.high == math.inf else f" and {'at most' if self.closed[1] else 'less than'} {self.high:g}"
        return low + high + ("" if self.also is None else f", or {self.also:g}")


COUNT, SIZE = Range(0, whole=True), Range(1, whole=True)
SIZE_OR_AUTO, COUNT_OR_AUTO = Range(1, also=-1, whole=True), Range(0, also=-1, whole=True)
LARGEST = 2**31 - 1  # that a device counts to
POSITIVE, NOT_NEGATIVE = Range(0, closed=(False, True)), Range(0)
SHARE, BELOW_ONE = Range(0, 1), Range(0, 1, (True, False))
INSIDE_ONE = Range(0, 1, (False, False))

# The last part of a key, or the end of it, -> its range; the first that matches counts.
RANGES = {
    r"mesh\.data": SIZE_OR_AUTO,
    r"eval_every": SIZE_OR_AUTO,
    r"(data|against|mixture\.[^.]+)\.workers": COUNT_OR_AUTO,
    r"optim\.warmup_steps": COUNT_OR_AUTO,
    r"(image_size|patch|width|heads|mlp_ratio|vocab_size|channels|image_cell|accumulate|fsdp|mesh\.model|cell)": SIZE,
    r"max_length": Range(3, whole=True),  # start token, one token, end token
    r"(batch_size|log_every|checkpoint_every|keep_checkpoints|threads|tokenizer_captions|text_buckets)": SIZE,
    r"(parallel|examples_per_shard)": SIZE,
    r"(depth|tap|embed|queue|registers|seed|seeds|scenes_seed|limit|workers|steps)": COUNT,
    r"(captions_per_image|match_images|choose_images|probe_limit|figures|finetune_steps)": COUNT,
    r"(resize|min_size|expected|against_distance|randaugment_ops|randaugment_magnitude)": COUNT,
    r"(mask_id|rerank_k)": COUNT_OR_AUTO,
    r"experts\.(count|top)": SIZE,
    r"grouping\.(part|ranks)": SIZE,
    r"masker\.layer": COUNT_OR_AUTO,  # -1: the last
    r"experts\.layers": COUNT,
    r"head\.(count|hidden|bottleneck)": SIZE,
    r"(train_limit|least|count)": COUNT,
    r"(candidates|most)": SIZE,
    r"answer_text\.length": Range(2, whole=True),  # start and end token
    r"quality": Range(1, 100, whole=True),
    r"pooling\.layers": Range(1, 2, whole=True),
    r"model\.temperature": Range(0.001, 0.5),  # where training keeps it, see models.vlm
    r"(lr|temperature_rate|clip_norm|eps|student_temperature|teacher_temperature)": POSITIVE,
    r"(encoder_lr|memory_gb|weight_decay|epochs|weight|hardness|init_std)": NOT_NEGATIVE,
    r"(b1|b2|ema_decay|centre_decay|dropout)": BELOW_ONE,
    r"(image_ratio|text_ratio)": INSIDE_ONE,
    r"(light_ratio|final_ratio|alpha|ramp|max_missing|max_broken|modality_dropout)": SHARE,
    r"crop_scale": Range(0, 1, (False, True)),
}
_PAIRS = ("ramp", "crop_scale", "ranks", "teacher_temperature")
_ORDERED = ("ramp", "crop_scale", "ranks")  # pairs whose first must not be above the second


def range_of(key: str) -> Range | None:
    """The range of a dotted key; None where the table has none."""
    return next((found for ending, found in RANGES.items() if re.search(rf"(^|\.){ending}$", key)), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...], bool]]:
    """(dotted key, its numbers, whether it is a tuple) of every value that is a number or a tuple of numbers."""
    for key, value in values.items():
        parts = tuple(value) if isinstance(value, tuple | list) else (value,)
        if parts and all(map(_is_number, parts)):
            yield key, parts, isinstance(value, tuple | list)


def check(values: Mapping[str, Any]) -> None:
    """Every number of a flattened config is in its range.

    Raises:
        UserError: naming the key, its value and what may take its place.
    """
    for key, value in values.items():
        if isinstance(value, tuple | list) and range_of(key) and not all(map(_is_number, value)):
            raise UserError(f"{key} is {tuple(value)}; give numbers")
    for key, parts, several in numbers(values):
        shown = f"({', '.join(f'{part:g}' for part in parts)})" if several else f"{parts[0]:g}"
        found = range_of(key)
        if found is not None and not all(map(found.holds, parts)):
            raise UserError(f"{key} is {shown}; give {found}")
        if found is not None and found.whole and not all(isinstance(part, int) for part in parts):
            raise UserError(f"{key} is {shown}; give whole numbers")
        if any(isinstance(part, int) and part > LARGEST for part in parts):
            raise UserError(f"{key} is {shown}; give at most {LARGEST}")
        name = key.rsplit(".", 1)[-1]
        if name in _PAIRS and len(parts) != 2:
            raise UserError(f"{key} is {shown}; give two numbers{', the smaller first' * (name in _ORDERED)}")
        if name in _ORDERED and parts[0] > parts[1]:
            raise UserError(f"{key} is {shown}; give two numbers, the smaller first")
