"""What the server of the page answers, and that a hostile client gets nothing out of it and does it no harm."""

import concurrent.futures
import http.client
import io
import json
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.data.decoding import DecodeError
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import limits, safety, server, thumbnails
from tests.search.serving import served

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def client(site):
    with httpx.Client(base_url=site.address, timeout=30) as client:
        yield client


def body(*parts, pictures=b"", **values) -> bytes:
    return json.dumps({"parts": list(parts), **values}).encode() + b"\n" + pictures


def png(size=64, seed=0) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(written, "PNG")
    return written.getvalue()


def exchange(site, request: bytes, *, leave: bool = False) -> bytes:
    """What comes back for bytes that no HTTP library would send, and perhaps not whole."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(request)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert words in line and "\n" not in line and "Traceback" not in line


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


@pytest.mark.parametrize(
    "target",
    [
        "/picture/../../../../etc/passwd", "/picture/..%2f..%2f..%2f..%2fetc%2fpasswd", "/picture/%2e%2e/%2e%2e/x",
        "/picture/..%252f..%252fetc%252fpasswd", "/picture/..%5c..%5cetc%5cpasswd", "/picture/..%c0%af..%c0%afetc",
        "/picture//etc/passwd", "/picture/%2fetc%2fpasswd", "//etc/passwd", "/thumbnail/test-000003.png", "/picture/3/",
        "/picture/3%00.png", "/picture/-1", "/picture/1e1", "/picture/48", "/picture/" + "9" * 5000, "/picture/%D9%A3",
        "/picture/9223372036854775808", "http://evil.example/picture/3", "/page.html", "/server.py", "/../server.py",
    ],
)  # fmt: skip
def test_no_address_leads_to_another_file(site, target):
    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nConnection: close\r\n\r\n"
    answer = exchange(site, head.encode())
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), head
    assert b"root:" not in content and b"import" not in content and len(content) < 300


def test_a_picture_that_became_a_link_or_went_is_not_served_nor_its_path_told(client, site, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    linked, gone = site.folder / "test-000040.png", site.folder / "test-000041.png"
    linked.unlink(), gone.unlink()
    linked.symlink_to(tmp_path / "secret.png")
    for row in (40, 41):
        for answer in (client.get(f"/picture/{row}"), client.get(f"/thumbnail/{row}")):
            refused(answer, 404, "no such picture")
            assert str(site.folder) not in answer.text
    linked.unlink()
    linked.write_bytes(png()), gone.write_bytes(png())


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", "", "a b", "@"])
def test_a_foreign_name_is_refused(client, name):
    for answer in (client.get("/", headers={"Host": name}), client.get("/picture/3", headers={"Host": name})):
        assert answer.status_code in (400, 403) and b"PNG" not in answer.content and b"<script" not in answer.content


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:8000"])
def test_a_name_of_this_machine_is_not(client, name):
    assert client.get("/about", headers={"Host": name}).status_code == 200


def test_a_page_of_another_site_is_refused(client, site):
    search = body({"text": "red"})
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:3000", "http://[", "x"):
        refused(client.post("/search", content=search, headers={"Origin": origin}), 403, "own page")
    for where in ("cross-site", "same-site"):
        refused(client.post("/search", content=search, headers={"Sec-Fetch-Site": where}), 403, "own page")
        refused(client.get("/thumbnail/3", headers={"Sec-Fetch-Site": where}), 403, "own page")
        assert client.get("/", headers={"Sec-Fetch-Site": where}).status_code == 200  # a link to the page
    own = {"Origin": site.address, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/search", content=search, headers=own).status_code == 200


def test_listening_everywhere_any_numeric_address_is_a_name_and_no_other_is():
    guard = safety.Guard(None, host="0.0.0.0", content_policy="")
    assert guard._is_own("192.168.1.7") and guard._is_own("fe80::1") and guard._is_own(socket.gethostname().lower())
    assert not guard._is_own("evil.example") and not guard._is_own("")
    assert not safety.Guard(None, host="192.168.1.7", content_policy="")._is_own("192.168.1.8")
    assert safety.is_loopback("127.0.0.2") and safety.is_loopback("localhost") and not safety.is_loopback("0.0.0.0")


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


def test_a_picture_of_too_many_pixels_is_not_decoded(client):
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    refused(client.post("/search", content=body({"bytes": len(bomb)}, pictures=bomb)), 400, "too many pixels")


def upload(site, *, declared: bool) -> int:
    """The status that 100 MB are answered with; 0 where the connection ended first."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    chunk = b"x" * MEGABYTE
    try:
        connection.putrequest("POST", "/search")
        connection.putheader(*(("Content-Length", 100 * MEGABYTE) if declared else ("Transfer-Encoding", "chunked")))
        connection.endheaders()
        for _ in range(100):
            connection.send(chunk if declared else b"%x\r\n%s\r\n" % (len(chunk), chunk))
    except OSError:  # the answer has come already
        pass
    try:
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_a_hundred_megabytes_are_refused_and_not_kept(client, site):
    before = site.memory()
    assert {upload(site, declared=declared) for declared in (True, False) for _ in range(3)} <= {413, 0}
    too_long = f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {100 * MEGABYTE}\r\n\r\n".encode()
    assert b" 413 " in exchange(site, too_long).partition(b"\r\n")[0]  # by what it says, before any of it came
    assert client.get("/about").status_code == 200
    assert site.memory() - before < 80 * MEGABYTE


def test_clients_that_leave_in_the_middle_leave_nothing_behind(client, site):
    head = f"POST /search HTTP/1.1\r\nHost: localhost:{site.port}\r\nContent-Length: 1000\r\n\r\n".encode()
    exchange(site, head + b'{"parts"', leave=True)
    exchange(site, b"\x00\x01 nonsense\r\n\r\n", leave=True)
    exchange(site, b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{site.address}/search", content=body({"text": "slow"}), timeout=0.01)
    assert client.get("/about").status_code == 200


def test_fifty_clients_at_once_are_answered_or_told_to_wait_and_memory_stays_flat(client, site):
    content = png(256)
    asked = body({"text": "slow"}, {"bytes": len(content)}, pictures=content)

    def ask(number: int) -> int:
        with httpx.Client(base_url=site.address, timeout=60, verify=False) as own:  # whose certificates take time
            small = own.get(f"/thumbnail/{number % 48}").status_code
            found = own.post("/search", content=asked)
            assert small == 200 and (found.status_code == 200 or "try again" in found.json()["error"])
            return found.status_code

    def round_of_fifty() -> set[int]:
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            return set(pool.map(ask, range(50)))

    round_of_fifty()
    before = site.memory()
    statuses = set().union(*(round_of_fifty() for _ in range(2)))
    assert 200 in statuses and statuses <= {200, 503}
    assert site.memory() - before < 60 * MEGABYTE
    assert client.post("/search", content=asked).status_code == 200


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
