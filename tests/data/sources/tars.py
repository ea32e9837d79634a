"""Tar shards for tests."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from maskvlm_jax.data.sources.webdataset import WebDataset


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, **options) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            tar.addfile(header, io.BytesIO(member[1]))


def sample(key: str, caption: str = "a dog", **fields) -> list[tuple[str, bytes]]:
    entry = {"caption": caption, "key": key, "status": "success"} | fields
    return [(f"{key}.jpg", jpeg("red")), (f"{key}.txt", caption.encode()), (f"{key}.json", json.dumps(entry).encode())]


def write_shards(folder: Path) -> Path:
    """Two shards of three and two samples."""
    write_tar(folder / "00000.tar", *sample("000", "a  red\n dog "), *sample("001", "zwei Bäume"), *sample("002"))
    write_tar(folder / "00001.tar", *sample("100", "a cat"), *sample("101", "x", text=["one", " two "]))
    return folder


def open_shards(folder: Path, **changes) -> WebDataset:
    return WebDataset(**({"root": str(folder), "shards": "*.tar"} | changes))


def contents(source: WebDataset) -> dict[str, list[str]]:
    return {source.id(i): source.captions(i) for i in range(len(source))}
