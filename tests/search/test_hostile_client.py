"""A hostile client gets nothing out of the server of the page, and does it no harm."""

import concurrent.futures
import http.client
import socket
import struct
import zlib

import httpx
import pytest

from maskvlm_jax.search import safety
from tests.search.asking import body, png, refused

MEGABYTE = 1 << 20


def exchange(site, request: bytes, *, leave: bool = False) -> bytes:
    """What comes back for bytes that no HTTP library would send, and perhaps not whole."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(request)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


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
