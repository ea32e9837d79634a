"""A small folder of pictures as people have them, for tests that read or train on one."""

from tests.data import hostile


def pictures(folder, names, splits=None, captions="a red square {}"):
    """A folder of pictures, `captions.csv` and the lists of `splits`."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        hostile.picture(number).save(folder / "images" / name)
    rows = [f'{name},"{captions.format(number)}"' for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n", encoding="utf-8")
    for split, chosen in (splits or {"train": names, "val": names[:2]}).items():
        (folder / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return folder


NAMES = [f"p{i:02d}.png" for i in range(10)]


TRAIN = "--config=configs/pretrain.py:size=tiny,data=files"
