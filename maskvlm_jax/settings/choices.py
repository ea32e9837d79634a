"""Values of a config that are one of a few words, and blocks whose lines are parts by name."""

from ml_collections import ConfigDict

from maskvlm_jax.runtime.errors import UserError


def check_choice(block: ConfigDict, name: str, allowed: tuple[str, ...]) -> None:
    """A value is one of a few words.

    Args:
        name: its dotted key, the last part of which is that in `block`.
    Raises:
        UserError: naming the key, its value and the words.
    """
    value = block[name.rsplit(".", 1)[1]]
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; choose among {', '.join(allowed)}")


def check_lines(block: ConfigDict, name: str, keys: tuple[str, ...]) -> None:
    """Every line of a block of parts by name gives what a line must give.

    Raises:
        UserError: naming the line and what it lacks.
    """
    for label, one in block.items():
        if not isinstance(one, ConfigDict) or not isinstance(one.get("name", ""), str):
            shown = one.to_dict() if isinstance(one, ConfigDict) else one
            raise UserError(f"{name}.{label} is {shown!r}; give a block with {', '.join(keys)}")
        lacking = [key for key in keys if key not in one]
        if lacking:
            raise UserError(f"{name}.{label} has no {' and no '.join(lacking)}; give {', '.join(keys)}")
