"""Pictures as the page shows them."""

import io

import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.data.decoding import DecodeError
from maskvlm_jax.search import thumbnails


def test_thumbnails_are_small_and_only_so_many_are_kept(tmp_path):
    for i in range(8):
        Image.fromarray(np.full((900, 1200, 3), i * 30, np.uint8)).save(tmp_path / f"{i}.png")
    kept = thumbnails.Thumbnails(most_bytes=20_000)
    sizes = {Image.open(io.BytesIO(kept.of(i, tmp_path / f"{i}.png"))).size for i in [*range(8), 7]}
    assert sizes == {(400, 300)}
    assert 0 < len(kept._kept) < 8 and sum(map(len, kept._kept.values())) == kept._bytes <= 20_000


def test_formats_that_browsers_do_not_show_are_served_as_jpeg_and_pages_are_not_served(tmp_path):
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "a.tif")
    assert thumbnails.shown_as_it_is(tmp_path / "a.tif") == ""
    assert Image.open(io.BytesIO(thumbnails.as_jpeg(tmp_path / "a.tif"))).size == (20, 30)
    (tmp_path / "b.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    assert thumbnails.shown_as_it_is(tmp_path / "b.png") == ""
    with pytest.raises(DecodeError):
        thumbnails.as_jpeg(tmp_path / "b.png")
    for kind, media in (("webp", "image/webp"), ("gif", "image/gif"), ("jpeg", "image/jpeg")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"c.{kind}")
        assert thumbnails.shown_as_it_is(tmp_path / f"c.{kind}") == media
