"""What the host remembers of a run beside its arrays, kept in every checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Progress:
    """How far a run has come, the same in every process.

    Attributes:
        seen: examples read; replaced: those of them that were broken, so that another stood in.
        broken: name of a broken example -> what is wrong with it, the first of them.
        best: the largest value of the metric that chooses the best checkpoint; best_step: when it was taken.
        stream: fingerprint of what was read, see `data.ledger`; None before the first checkpoint.
    """

    seen: int = 0
    replaced: int = 0
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    best: float = -1.0
    best_step: int = 0
    stream: dict[str, str] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Progress":
        """From what `as_dict` gave."""
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        values = dataclasses.asdict(self)
        return values if self.stream else {key: value for key, value in values.items() if key != "stream"}

    def broken_report(self) -> str:
        """What was broken, in a line: how many by reason, and the first of each."""
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(self.broken.items()):
            reasons.setdefault(reason, []).append(name)
        more = {reason: ", ..." if len(names) > 1 else "" for reason, names in reasons.items()}
        parts = [f"{len(names)} {reason} ({names[0]}{more[reason]})" for reason, names in reasons.items()]
        return f"{len(self.broken)} broken, replaced {self.replaced} times: {', '.join(parts)}"
