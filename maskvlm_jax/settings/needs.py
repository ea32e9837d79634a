"""What objectives and maskers need of the model and of the training."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.runtime import plugins
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings.choices import check_choice, check_lines


def masker_class(name: str) -> Any:
    """The class of `maskvlm_jax/objectives/maskers/NAME.py`, or of the file that `name` is the path of.

    Raises:
        UserError: there is none.
    """
    return plugins.load("maskvlm_jax.objectives.maskers", name, "Masker", "masker")


def check_objectives(config: ConfigDict, active: Mapping[str, Any]) -> None:
    """What objectives need is there.

    Args:
        active: the class of each that has a weight, by label.

    Raises:
        UserError: naming the objective, and what to set.
    """
    owners: dict[str, str] = {}
    for label, kind in sorted(active.items()):
        objective = config.objectives[label]
        for part in kind.shares:
            first = owners.setdefault(part, label)
            if objective.get(part) != config.objectives[first].get(part):
                raise UserError(f"objectives.{first}.{part} and objectives.{label}.{part} are one part; set both alike")
        for key, choices in kind.choices.items():
            if key in objective:
                check_choice(objective, f"objectives.{label}.{key}", choices)
        _check_needs(config, f"objectives.{label}", objective, kind.needs(objective))


def check_masker(config: ConfigDict) -> None:
    """What masks that are drawn on the device need is there.

    Raises:
        UserError: naming the option, and what to set.
    """
    masker = config.masking.masker
    if not masker:
        return
    check_lines(ConfigDict({"masker": masker}), "masking", ("name",))
    options = {key: value for key, value in masker.items() if key != "name"}
    kind = masker_class(masker.name)
    for key, choices in kind.choices.items():
        if key in masker:
            check_choice(masker, f"masking.masker.{key}", choices)
    try:
        built = kind(**options)
    except TypeError as error:
        raise UserError(f"masking.masker: {error}") from error
    _check_needs(config, "masking.masker", masker, built.needs())
    if kind.hides_words and config.masking.text_corruption != "mask":
        raise UserError("masking.masker hides words by the mask token; set masking.text_corruption to mask")
    if kind.hides_words and config.masking.whole_word:
        raise UserError("masking.masker hides single tokens; set masking.whole_word to False")


def _check_needs(config: ConfigDict, name: str, options: Mapping[str, Any], needs: Any) -> None:
    """Raises UserError for the first of an objective's or a masker's needs that is not met; `needs`: `base.Needs`."""
    model, image, fusion = config.model, config.model.image, config.model.fusion
    lacking = next((field for field in needs.fields if field not in config.data.fields), "")
    random = ", or set its negatives to random" * ("negatives" in options)
    rows = (
        (needs.embedding and not model.embed, f"needs a contrastive space, and model.embed is 0; leave it out{random}"),
        (
            needs.masked_pictures and image.hidden == "none",
            "reads masked pictures, and model.image.hidden is none; set it to token",
        ),
        (
            needs.hidden and image.hidden not in needs.hidden,
            "reads what the image encoder makes of masked pictures; set model.image.hidden to one of "
            + ", ".join(needs.hidden),
        ),
        (
            needs.class_token and not image.class_token,
            "reads the class token of pictures; set model.image.class_token to True",
        ),
        (needs.fusion and fusion.kind == "none", "reads both modalities fused, and model.fusion.kind is none"),
        (
            needs.fused_patches and fusion.get("streams") == "text",
            "reads fused patches; set model.fusion.streams to both",
        ),
        (lacking, f"reads {lacking} of each example; give data.fields.{lacking}"),
        (
            needs.teacher and not config.optim.ema_decay,
            "reads a moving average of the model; set --config.optim.ema_decay=0.995",
        ),
    )
    for unmet, message in rows:
        if unmet:
            raise UserError(f"{name} {message}")
    if needs.cell and image.patch % needs.cell:
        divisors = (cell for cell in range(1, image.patch + 1) if image.patch % cell == 0)
        nearest = min(divisors, key=lambda cell: abs(cell - needs.cell))
        raise UserError(
            f"{name}.cell {needs.cell} does not divide model.image.patch {image.patch}; "
            f"set --config.{name}.cell={nearest}"
        )
