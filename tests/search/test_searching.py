"""A query is a weighted sum of its parts; a text alone is matched with the nearest."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import answers
from maskvlm_jax.search.searching import Part, Searcher
from tests.search.stand_ins import StandIn, content, made, unit, update, write_picture


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        write_picture(tmp_path / "pictures" / f"{number:02d}.png", number)
    return tmp_path / "pictures"


def opened(index, model=None):
    return Searcher.open(index, load=lambda *_, **__: model or StandIn())


@pytest.fixture
def searcher(tmp_path, folder):
    made(tmp_path / "index", folder)
    update(tmp_path / "index")
    return opened(tmp_path / "index")


def vectors(tmp_path):
    """(40, E), in the order of names."""
    return np.stack([np.frombuffer(vector, np.float32) for _, _, vector in content(tmp_path / "index")])


def names(found):
    return [hit.name for hit in found.hits]


def nearest(tmp_path, query, k):
    return [f"{place:02d}.png" for place in np.argsort(-(vectors(tmp_path) @ query), kind="stable")[:k]]


def test_a_query_is_the_weighted_sum_of_its_parts(searcher, tmp_path, folder):
    model, rows = StandIn(), vectors(tmp_path)
    found = searcher.search([Part(like=3)], k=5)
    assert (found.hits[0].name, found.pictures, found.above) == ("03.png", 40, 0)
    assert found.hits[0].cosine == pytest.approx(1, abs=1e-6) and found.hits[0].probability is None
    assert names(searcher.search([Part(image=folder / "07.png")], k=3)) == nearest(tmp_path, rows[7], 3)
    parts = [Part(text="a dog", weight=0.5), Part(like=4, weight=2), Part(image=folder / "05.png", weight=-1)]
    query = unit(0.5 * model.encode_texts("a dog") + 2 * rows[4] - rows[5])
    found = searcher.search(parts, k=7)
    assert names(found) == nearest(tmp_path, query, 7)
    np.testing.assert_allclose([hit.cosine for hit in found.hits], np.sort(rows @ query)[::-1][:7], atol=1e-6)


def test_a_text_alone_is_matched_with_the_nearest(searcher, tmp_path, folder):
    query = StandIn().encode_texts("a dog")
    first = searcher.search([Part(text="a dog")], k=4, rerank=0)
    assert names(first) == nearest(tmp_path, query, 4) and first.hits[0].probability is None
    both = searcher.search([Part(text="a dog")], k=4, rerank=10, cutoff=0.5)
    darkness = {name: 1 - np.asarray(Image.open(folder / name)).mean() / 255 for name in nearest(tmp_path, query, 10)}
    wanted = sorted(darkness, key=darkness.get, reverse=True)[:4]
    assert names(both) == wanted
    assert both.above == sum(darkness[name] >= 0.5 for name in wanted) > 0
    none = searcher.search([Part(text="a dog")], k=4, rerank=10, cutoff=1.0)
    assert none.above == 0 and names(none) == wanted
    assert answers.table(none).startswith("nothing above 1; the nearest are:\nrow  cosine  match  name\n")
    assert "nothing above" not in answers.table(both)
    assert answers.table(first).splitlines()[0] == "row  cosine  name"


def test_deleted_and_vanished_pictures_are_not_found(searcher, tmp_path, folder):
    query = [Part(text="a dog")]
    first, second = names(searcher.search(query, k=2, rerank=0))
    (folder / first).unlink()
    assert first not in names(searcher.search(query, k=40))  # its file cannot be matched
    update(tmp_path / "index")
    found = searcher.search(query, k=40, rerank=0)  # the same searcher sees the update
    assert (names(found)[0], found.pictures, len(found.hits)) == (second, 39, 39)
    shutil.copy(folder / second, folder / "copy.png")
    update(tmp_path / "index")
    assert searcher.search(query, k=1, rerank=0).hits[0].copies == ("copy.png",)
    with pytest.raises(ValueError, match="the index has no picture"):
        searcher.search([Part(like=int(first[:2]))])


def test_a_picture_is_a_file_of_the_folder_and_nothing_else(searcher, tmp_path, folder):
    write_picture(tmp_path / "secret.png", 99)
    assert searcher.picture(6) == folder / "06.png"
    (folder / "06.png").unlink()
    (folder / "06.png").symlink_to(tmp_path / "secret.png")
    (folder / "05.png").unlink()
    for row in (5, 6, -1, 40, 10**12):
        with pytest.raises(LookupError):
            searcher.picture(row)


def test_names_that_are_no_utf8_are_found(tmp_path, folder):
    os.rename(folder / "00.png", os.path.join(os.fsencode(folder), b"\xff.png"))
    made(tmp_path / "index", folder)
    update(tmp_path / "index")
    searcher = opened(tmp_path / "index")
    (hit,) = [hit for hit in searcher.search([Part(text="a")], k=40).hits if "\\" in hit.name]
    assert hit.name == "\\xff.png" and os.fsencode(searcher.picture(hit.row)).endswith(b"/\xff.png")


def test_threads_search_at_once(searcher):
    texts = [f"text {number}" for number in range(20)]
    alone = [searcher.search([Part(text=text)]) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: searcher.search([Part(text=text)]), texts)) == alone


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ([], {}),
        ([Part()], {}),
        ([Part(text="a", like=3)], {}),
        ([Part(text="a"), Part(text="a", weight=-1)], {}),
        ([Part(text="a", weight=float("nan"))], {}),
        ([Part(like=40)], {}),
        ([Part(like=-1)], {}),
        ([Part(text="a")], {"k": 0}),
        ([Part(text="a")], {"rerank": -1}),
        ([Part(text="a")], {"cutoff": 1.5}),
    ],
)
def test_nonsense_is_a_value_error(searcher, parts, options):
    with pytest.raises(ValueError, match=r"give|one of|no number|cancel|no picture"):
        searcher.search(parts, **options)


def test_an_index_without_pictures_finds_none(tmp_path):
    (tmp_path / "empty").mkdir()
    made(tmp_path / "index", tmp_path / "empty")
    update(tmp_path / "index")
    found = opened(tmp_path / "index").search([Part(text="a dog")])
    assert (found.hits, found.above, found.pictures) == ([], 0, 0)
    assert answers.table(found) == "the index has no pictures"


def test_what_is_no_index_and_another_model_are_told(searcher, tmp_path):
    with pytest.raises(UserError, match="there is no index in nowhere; make one"):
        Searcher.open("nowhere")
    model = StandIn()
    model.parameters_sha256 = "b" * 64
    with pytest.raises(UserError, match=f"{'a' * 64}.*{'b' * 64}"):
        opened(tmp_path / "index", model)
    with pytest.raises(UserError, match=r"the model of the index cannot be read: .*'nowhere'.* --model=FOLDER"):
        Searcher.open(tmp_path / "index", model="nowhere")
