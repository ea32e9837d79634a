"""Questions about pictures, answered by a decoder: the task `vqa` with answers as texts (`objectives.answer_text`)."""

from ml_collections import ConfigDict

from maskvlm_jax.training.tasks import vqa


def task(config: ConfigDict, here: str) -> None:
    vqa.task(config, here)
    people_agree = config.data.source.endswith("scenes.questions")
    length = min(12, config.model.text.max_length)
    most = 1 if people_agree else 10
    config.data.fields.answer_text = ConfigDict({"name": "answer_text", "most": most, "length": length})
    # The fusion's blocks, which the decoder starts from. There `kind` is that of the fusion.
    values = config.model.fusion.to_dict()
    kind = values.get("block_kind", "dense")
    of_fusion = ("block_kind", "streams", "tap", "decoder", "experts")
    decoder = {key: value for key, value in values.items() if key not in of_fusion}
    decoder["kind"] = "dense" if kind == "experts" else kind  # of which there are no cross blocks
    objective = {"name": "answer_text", "weight": 1.0, "label": "answer_text", "candidates": 128, "decoder": decoder}
    config.objectives = ConfigDict({"answers": objective})
