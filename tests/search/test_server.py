"""What the server of the page answers."""

import concurrent.futures
import io
import json

import httpx
import pytest
from PIL import Image

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import limits, server
from tests.search.asking import body, png, refused
from tests.search.serving import served


def test_the_page_is_one_file_that_asks_no_other_host(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "//" not in answer.text.replace("'http://www.w3.org/2000/svg'", "").replace("// ", "")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2


def test_every_answer_carries_the_headers_that_keep_others_out(client):
    for answer in (client.get("/about"), client.get("/nothing"), client.get("/thumbnail/0"), client.put("/search")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_what_is_searched_is_told(client, site):
    about = client.get("/about").json()
    assert about["pictures"] == 48 and about["folder"] == "scenes" and about["most"]["upload"] == limits.UPLOAD
    assert str(site.folder.parent) not in json.dumps(about)


def test_a_text_finds_pictures_with_probabilities(client):
    found = client.post("/search", content=body({"text": "a large red square"}, k=5, cutoff=0.75)).json()
    assert len(found["hits"]) == 5 and found["pictures"] == 48 and found["cutoff"] == 0.75
    assert set(found["hits"][0]) == {"row", "name", "cosine", "probability", "copies"}
    assert found["above"] == sum(hit["probability"] >= 0.75 for hit in found["hits"])


def test_a_text_that_the_model_does_not_read_whole_is_told_so(client):
    cut = [client.post("/search", content=body({"text": "word " * count})).json()["cut"] for count in (20, 21)]
    assert cut == [False, True]


def test_a_picture_finds_itself_and_so_does_its_row(client, site):
    content = (site.folder / "test-000007.png").read_bytes()
    by_picture = client.post("/search", content=body({"bytes": len(content)}, pictures=content)).json()
    by_row = client.post("/search", content=body({"like": 7})).json()
    assert by_picture["hits"][0]["row"] == by_row["hits"][0]["row"] == 7
    assert by_row["hits"][0]["cosine"] == 1 and by_row["hits"][0]["probability"] is None


def test_parts_are_added_with_their_weights(client, site):
    content = (site.folder / "test-000007.png").read_bytes()
    parts = {"text": "red"}, {"bytes": len(content)}, {"text": "square", "weight": -1}
    assert client.post("/search", content=body(*parts, pictures=content)).status_code == 200


def test_words_that_matter_for_a_picture(client):
    words = client.post("/words", json={"text": "a zebra", "row": 3}).json()["words"]
    assert [word for word, _ in words] == ["a", "zebra"] and words[1][1] < 0


def test_pictures_are_served_by_row(client, site):
    whole, small = client.get("/picture/3"), client.get("/thumbnail/3")
    assert whole.content == (site.folder / "test-000003.png").read_bytes()
    assert whole.headers["content-type"] == "image/png" and "content-disposition" not in whole.headers
    assert (
        Image.open(io.BytesIO(small.content)).format == "JPEG" and client.get("/thumbnail/3").content == small.content
    )


def test_nothing_is_changed_by_get_and_other_methods_do_nothing(client):
    refused(client.get("/search"), 405, "does not do that")
    for method in ("PUT", "DELETE", "PATCH"):
        refused(client.request(method, "/picture/3"), 405, "does not do that")
    refused(client.get("/nothing"), 404, "no such address")


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "cannot be read"),
        (b"{", 400, "cannot be read"),
        (b"[" * 70_000, 400, "cannot be read"),
        (b"\xff\xfe", 400, "cannot be read"),
        (b'{"parts": ' + b"9" * 5000 + b"}", 400, "cannot be read"),
        (b'{"parts": []}', 400, "empty"),
        (body({"text": "  "}), 400, "empty"),
        (body({"text": 3}), 400, "empty"),
        (body({"text": "a", "like": 3}), 400, "each part"),
        (body("a"), 400, "each part"),
        (body({"text": "\ud800"}), 400, "characters that are none"),
        (body({"text": "a", "weight": 0}), 400, "weight"),
        (b'{"parts": [{"text": "a", "weight": NaN}]}', 400, "weight"),
        (b'{"parts": [{"text": "a", "weight": 1e999}]}', 400, "weight"),
        (body({"text": "a"}, k=0), 400, "k must"),
        (body({"text": "a"}, k=10**9), 400, "k must"),
        (body({"text": "a"}, k=True), 400, "k must"),
        (body({"text": "a"}, cutoff=2), 400, "cut-off"),
        (body({"like": 10**30}), 404, "no such picture"),
        (body({"like": "../3"}), 404, "no such picture"),
        (body({"like": 1000}), 400, "no picture 1000"),
        (body(*[{"text": "a"}] * 17), 413, "16 parts"),
        (body({"text": "word " * 10_000}), 413, "1,000 words"),
        (body({"text": "w" * 10_001}), 413, "10,000 letters"),
        (body(*[{"text": "w " * 501}] * 2), 413, "1,000 words"),
        (body({"text": "w" * 100_000}), 413, "letters"),
        (body({"bytes": 100}, pictures=b"123"), 400, "whole"),
        (body({"bytes": 0}), 400, "whole"),
        (body({"text": "a"}, pictures=b"123"), 400, "more bytes"),
        (body({"bytes": 3}, pictures=b"123"), 400, "no picture"),
        (body({"bytes": 40}, pictures=png()[:40]), 400, "no picture"),
        (body({"bytes": 500}, pictures=png()[:500]), 400, "no picture"),
    ],
)
def test_a_query_that_is_none_is_told_in_a_line(client, content, status, words):
    refused(client.post("/search", content=content), status, words)


def test_a_question_for_words_that_is_none_is_told_in_a_line(client):
    refused(client.post("/words", json={}), 400, "empty")
    refused(client.post("/words", json={"text": "", "row": 3}), 400, "empty")
    refused(client.post("/words", json={"text": "a"}), 404, "no such picture")
    refused(client.post("/words", json={"text": "a", "row": 10**9}), 404, "no such picture")


def test_where_nothing_can_listen_a_line_says_so(site):
    nowhere = ("127.0.0.1", site.port, "in use"), ("127.0.0.1", 70_000, "70000"), ("no.such.invalid", 0, "no.such")
    for host, port, words in nowhere:
        with pytest.raises(UserError, match=words):
            server.serve(None, host=host, port=port)


def test_ctrl_c_ends_it_in_the_middle_of_a_search(cli_environment, tmp_path):
    with served(tmp_path, cli_environment, count=2, size=32) as here, concurrent.futures.ThreadPoolExecutor(1) as pool:
        search = pool.submit(httpx.post, f"{here.address}/search", content=body({"text": "slower"}), timeout=30)
        while not httpx.get(f"{here.address}/about").is_success:
            pass
        assert here.stop() == 130
        assert search.exception() is not None or search.result().status_code >= 500
