"""What is sent to the server of the page, and what comes back."""

import io
import json

import httpx
import numpy as np
from PIL import Image


def body(*parts, pictures=b"", **values) -> bytes:
    return json.dumps({"parts": list(parts), **values}).encode() + b"\n" + pictures


def png(size=64, seed=0) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(written, "PNG")
    return written.getvalue()


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert words in line and "\n" not in line and "Traceback" not in line
