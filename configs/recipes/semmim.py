"""After SemMIM (arXiv 2403.00249): patches that the caption speaks of are masked, and rebuilt as prototypes that a
moving average of the model finds in the whole pair; the picture's class token learns what the prototypes mean."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion.kind, config.model.fusion.streams = "cross", "both"
    # hardness: 0 = at random; by: attention | cosine, of the caption's start token
    config.masking.masker = ConfigDict({"name": "text_guided", "by": "attention", "layer": 2, "hardness": 1.0})
    config.masking.image_cell, config.masking.image_ratio = 1, 0.5
    config.masking.text_ratio, config.masking.text_corruption = 0.15, "bert"
    # Slow from the first step on, as DINO's: with one that follows the young model pictures shared two prototypes.
    config.optim.ema_decay, config.optim.ema_ramp = 0.996, False
    # One head for both losses: a flag that changes it under one of them changes it under the other.
    head = {"count": 128, "hidden": 256, "bottleneck": 64} if setting.short else {}
    head = ConfigDict({"count": 8_192, "hidden": 2_048, "bottleneck": 256} | head)
    distributions = {"head": head, "student_temperature": 0.1, "centre_decay": 0.9, "ramp": (0.0, 0.3)}
    if setting.photographs:
        config.data.fields.second_crop = ConfigDict({"name": "picture", "key": "image"})
    config.objectives = ConfigDict(
        {
            "agreement": {
                "name": "agreement",
                "weight": 1.0,
                # crops: two of each picture | masks: the whole picture and the masked one; of generated scenes, whose
                # captions say where things are, there is one crop
                "between": "crops" if setting.photographs else "masks",
                "teacher_temperature": (0.04, 0.04),
                **distributions,
            },
            "masked_prototype": {
                "name": "masked_prototype",
                "weight": 1.0,
                "prediction": "fused",  # fused | image: whether the caption is read where patches are predicted
                "target": "fused",  # fused | image: whether it is read where the targets are made
                "teacher_temperature": (0.04, 0.07),
                **distributions,
            },
            # Other targets of masked patches, to compare with: pixels, and features of the moving average.
            "masked_image": {
                "name": "masked_image",
                "weight": 0.0,
                "other": "clean",
                "norm": "l2" if setting.short else "l1",
                "decoder": parts.cross_decoder(config, setting),
            },
            "masked_feature": {"name": "masked_feature", "weight": 0.0},
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "contrastive": parts.contrastive(parts.SHORT_CONTRASTIVE if setting.short else 1.0),
            "matching": parts.matching(setting),
        }
    )
