"""The pictures of a run's own data as files, so that they can be searched like a folder of photographs."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskvlm_jax.data.sources import opening
from maskvlm_jax.runtime import files

CAPTIONS = "captions.csv"


def write_pictures(data: Mapping[str, Any], split: str, image_size: int, folder: Path) -> None:
    """Writes a file for each picture of a split, bytes as they are and drawn ones as PNG, and the captions beside them.

    Files that are there are left as they are, so that a stopped process goes on; captions.csv, `image,caption`, is
    written last.

    Args:
        data: `config.data` of a run.

    Raises:
        UserError: there is no such split, or the folder cannot be written.
    """
    if (folder / CAPTIONS).exists():
        return
    source, lines = opening.open_source(data, split, image_size), io.StringIO()
    writer, digits = csv.writer(lines, lineterminator="\n"), len(str(len(source)))
    writer.writerow(["image", "caption"])
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(len(source)), unit=" pictures", desc=split, disable=None, leave=False):
        example = source[index]
        content, ending = _encoded(example["image"])
        path = folder / f"{split}-{index:0{digits}d}{ending}"
        if not path.exists():
            files.write_bytes(path, content)
        writer.writerows([path.name, caption] for caption in example["captions"])
    files.write_text(folder / CAPTIONS, lines.getvalue())


def _encoded(image: bytes | np.ndarray) -> tuple[bytes, str]:
    """A picture as the bytes of a file, and the ending of its name."""
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image)) as picture:
                return image, f".{picture.format.lower()}"
        except (OSError, ValueError):
            return image, ".jpg"  # it is listed as broken, as it is in the run
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue(), ".png"
