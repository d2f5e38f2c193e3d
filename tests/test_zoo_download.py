"""Downloads that break, change, lie or go well, from a server on this machine."""

from __future__ import annotations

import hashlib
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sanrobust.errors import DownloadError, OutputError
from sanrobust.zoo.download import download, looks_like_html, looks_like_text
from zoo_files import Request, ban_network, serving

CONTENT = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    ban_network(monkeypatch)


class Server:
    """Serves ``content`` with ranges; breaks the line after ``cuts`` bytes, one per request."""

    def __init__(self, content: bytes = CONTENT, *, cuts: tuple[int | None, ...] = (),
                 etag: str = '"v1"', ranges: bool = True) -> None:
        self.content, self.etag, self.ranges = content, etag, ranges
        self.cuts = list(cuts)
        self.asked: list[str | None] = []
        self.headers: list[dict[str, str]] = []

    def __call__(self, request: Request) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        self.headers.append(dict(request.headers.items()))
        cut = self.cuts.pop(0) if self.cuts else None
        condition = request.headers.get("If-Range")
        if wanted is None or not self.ranges or condition not in (None, self.etag):
            request.send(200, self.content, sent=cut, ETag=self.etag)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            request.send(416, b"", Content_Range=f"bytes */{len(self.content)}")
            return
        request.send(206, self.content[start:], sent=cut, ETag=self.etag, Content_Range=(
            f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"))


class Careless(Server):
    """Sends the part asked for of whatever it has now, without a look at If-Range."""

    def __call__(self, request: Request) -> None:
        del request.headers["If-Range"]
        super().__call__(request)


NOTES = '{"url": "URL", "etag": %s, "modified": null, "total": "700000"}'


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetches_the_file_and_returns_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pth"
    with serving(Server()) as url:
        assert download(url, path, sha256=SHA256.upper()) == SHA256
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == ["a.pth"]


def test_goes_on_where_the_line_broke(tmp_path: Path) -> None:
    server = Server(cuts=(300_000, 200_000))
    with serving(server) as url:
        assert download(url, tmp_path / "a.pth", pause=0) == SHA256
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]
    assert leftovers(tmp_path) == ["a.pth"]


def test_a_later_call_goes_on_from_the_bytes_an_earlier_one_left(tmp_path: Path) -> None:
    server, path = Server(cuts=(300_000,)), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError, match="run again to go on from byte 300000"):
            download(url, path, attempts=1)
        assert not path.exists()
        assert download(url, path, sha256=SHA256) == SHA256
    assert server.asked == [None, "bytes=300000-"]


def test_gives_up_after_its_attempts(tmp_path: Path) -> None:
    server = Server(cuts=(0, 0, 0, 0))
    with serving(server) as url:
        with pytest.raises(DownloadError, match="must reach its end"):
            download(url, tmp_path / "a.pth", attempts=3, pause=0)
    assert len(server.asked) == 3


def test_starts_over_when_the_server_ignores_ranges(tmp_path: Path) -> None:
    server = Server(cuts=(300_000,), ranges=False)
    with serving(server) as url:
        assert download(url, tmp_path / "a.pth", pause=0) == SHA256


def test_starts_over_when_the_file_changed(tmp_path: Path) -> None:
    server, path = Server(cuts=(300_000,)), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError):
            download(url, path, attempts=1)
        server.content, server.etag = CONTENT[::-1], '"v2"'
        download(url, path)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_starts_over_where_nothing_tells_the_versions_apart(tmp_path: Path, etag: str) -> None:
    server, path = Server(cuts=(300_000,), etag=etag), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError, match="broke off") as caught:
            download(url, path, attempts=1)
        assert "run again" not in caught.value.hint and leftovers(tmp_path) == []
        server.content = CONTENT[::-1]  # of the same length
        download(url, path)
    assert server.asked == [None, None]
    assert path.read_bytes() == server.content


def test_starts_over_when_the_server_joins_another_version(tmp_path: Path) -> None:
    server, path = Careless(cuts=(300_000,)), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError):
            download(url, path, attempts=1)
        server.content = CONTENT[::-1] + b"longer"
        download(url, path)
    assert server.asked == [None, "bytes=300000-", None]
    assert path.read_bytes() == server.content


def test_starts_over_after_416(tmp_path: Path) -> None:
    server, path = Careless(cuts=(300_000,)), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError):
            download(url, path, attempts=1)
        server.content = CONTENT[:1000]
        download(url, path)
    assert server.asked == [None, "bytes=300000-", None]
    assert path.read_bytes() == CONTENT[:1000]


def test_a_file_sent_compressed_is_refused(tmp_path: Path) -> None:
    with serving(lambda request: request.send(200, CONTENT, Content_Encoding="gzip")) as url:
        with pytest.raises(DownloadError, match="as it is, but .* encoded .gzip."):
            download(url, tmp_path / "a.pth")
    assert leftovers(tmp_path) == []


def test_a_server_that_drips_counts_as_silent(tmp_path: Path) -> None:
    def drip(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        with suppress(OSError):
            for _ in range(100):
                request.wfile.write(b"x")
                time.sleep(0.02)

    with serving(drip) as url:
        started = time.monotonic()
        with pytest.raises(DownloadError, match=r"only \d+ bytes came"):
            download(url, tmp_path / "a.pth", timeout=0.2, attempts=1)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("target", ["http://[::1", "http://127.0.0.1:port/", "/caf\udce9"])
def test_an_address_that_does_not_read_is_a_sentence(tmp_path: Path, target: str) -> None:
    def answer(request: Request) -> None:
        request.send_response(302)
        request.wfile.write(b"")
        request.flush_headers()
        request.wfile.write(f"Location: {target}\r\n\r\n".encode("utf-8", "surrogateescape"))

    with serving(answer) as url:
        with pytest.raises(DownloadError):
            download(url, tmp_path / "a.pth", attempts=1)


def test_redirects_in_a_circle_are_final(tmp_path: Path) -> None:
    asked = []

    def answer(request: Request) -> None:
        asked.append(request.path)
        request.send(302, b"", Location="/again")

    with serving(answer) as url:
        with pytest.raises(DownloadError, match="answered 302"):
            download(url, tmp_path / "a.pth")
    assert len(asked) < 12


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3"])
def test_a_length_that_is_no_number_counts_as_unknown(tmp_path: Path, length: str) -> None:
    with serving(lambda request: request.send(200, CONTENT, Content_Length=length)) as url:
        assert download(url, tmp_path / "a.pth") == SHA256


@pytest.mark.parametrize("notes", ["[]", '{"url": 1}', "[" * 100_000, NOTES % "7", NOTES % '"v1"'])
def test_notes_that_were_altered_join_nothing(tmp_path: Path, notes: str) -> None:
    with serving(Server()) as url:
        (tmp_path / "a.pth.part").write_bytes(b"x" * 1000)
        (tmp_path / "a.pth.part.json").write_text(notes.replace("URL", url))
        assert download(url, tmp_path / "a.pth") == SHA256


def test_a_weak_etag_is_not_used_to_join_parts(tmp_path: Path) -> None:
    server = Server(cuts=(300_000,), etag='W/"v1"')
    with serving(server) as url:
        download(url, tmp_path / "a.pth", pause=0)
    assert "If-Range" not in server.headers[1]


def test_a_part_of_unknown_origin_is_not_joined(tmp_path: Path) -> None:
    server, path = Server(), tmp_path / "a.pth"
    (tmp_path / "a.pth.part").write_bytes(b"from somewhere else")
    with serving(server) as url:
        assert download(url, path) == SHA256
    assert server.asked == [None]


def test_a_whole_part_needs_no_second_transfer(tmp_path: Path) -> None:
    server, path = Server(cuts=(300_000,)), tmp_path / "a.pth"
    with serving(server) as url:
        with pytest.raises(DownloadError):
            download(url, path, attempts=1)
        (tmp_path / "a.pth.part").write_bytes(CONTENT)
        assert download(url, path, sha256=SHA256) == SHA256
    assert server.asked == [None]


def test_a_file_of_another_hash_is_removed(tmp_path: Path) -> None:
    with serving(Server()) as url:
        with pytest.raises(DownloadError, match=f"has {SHA256} and was removed"):
            download(url, tmp_path / "a.pth", sha256="0" * 64)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("declared", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_refused_with_the_way_by_hand(tmp_path: Path, declared: str) -> None:
    def answer(request: Request) -> None:
        request.send(200, b"<!DOCTYPE html><html>Too many users have viewed this file</html>",
                     Content_Type=declared)

    with serving(answer) as url:
        with pytest.raises(DownloadError, match=r"sent a web page .*: open https://a\.page in a "
                           r"browser, save the file and type: sanrobust zoo add x\.in1k FILE"):
            download(url, tmp_path / "a.pth", name="x.in1k", page="https://a.page")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(tmp_path: Path, status: int) -> None:
    asked = []

    def answer(request: Request) -> None:
        asked.append(request.path)
        request.send(status, b"no")

    with serving(answer) as url:
        with pytest.raises(DownloadError, match=f"answered {status}"):
            download(url, tmp_path / "a.pth")
    assert len(asked) == 1


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    statuses = [503, 429]

    def answer(request: Request) -> None:
        request.send(*((statuses.pop(), b"wait") if statuses else (200, CONTENT)))

    with serving(answer) as url:
        assert download(url, tmp_path / "a.pth", pause=0) == SHA256


def test_a_silent_server_times_out(tmp_path: Path) -> None:
    with serving(lambda request: time.sleep(0.6)) as url:
        started = time.monotonic()
        with pytest.raises(DownloadError, match="timed out"):
            download(url, tmp_path / "a.pth", timeout=0.1, attempts=1)
    assert time.monotonic() - started < 5


def test_an_announced_length_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with serving(Server()) as url:
        with pytest.raises(DownloadError, match="no longer than 1000 bytes"):
            download(url, tmp_path / "a.pth", max_bytes=1000)
    assert leftovers(tmp_path) == []


def test_an_unannounced_length_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with serving(lambda request: request.send(200, CONTENT, Content_Length="")) as url:
        with pytest.raises(DownloadError, match="no longer than 1000 bytes"):
            download(url, tmp_path / "a.pth", max_bytes=1000)
    assert leftovers(tmp_path) == []


def test_an_unannounced_length_is_taken(tmp_path: Path) -> None:
    with serving(lambda request: request.send(200, CONTENT, Content_Length="")) as url:
        assert download(url, tmp_path / "a.pth") == SHA256


def test_an_empty_answer_is_refused(tmp_path: Path) -> None:
    with serving(lambda request: request.send(200, b"")) as url:
        with pytest.raises(DownloadError, match="sent nothing"):
            download(url, tmp_path / "a.pth")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("url", [
    "http://example.org/a", "ftp://127.0.0.1/a", "file:///etc/passwd", "http://127.0.0.1.evil.org/",
    "weights.pth",
])
def test_only_https_or_this_machine(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="must start with https://"):
        download(url, tmp_path / "a.pth")


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="must hold no password") as caught:
        download("https://me:secret@example.org/a", tmp_path / "a.pth")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["http://example.org/a", "ftp://127.0.0.1/a"])
def test_a_redirect_must_be_allowed_too(tmp_path: Path, target: str) -> None:
    with serving(lambda request: request.send(302, b"", Location=target)) as url:
        with pytest.raises(DownloadError, match="must start with https://"):
            download(url, tmp_path / "a.pth", attempts=1)
    assert leftovers(tmp_path) == []


def test_an_allowed_redirect_is_followed(tmp_path: Path) -> None:
    with serving(Server()) as there:
        with serving(lambda request: request.send(302, b"", Location=there)) as url:
            assert download(url, tmp_path / "a.pth") == SHA256


def test_sends_no_credentials_and_asks_for_plain_bytes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    server = Server()
    with serving(server) as url:
        download(url, tmp_path / "a.pth")
    assert set(server.headers[0]) == {"Host", "User-Agent", "Accept-Encoding", "Connection"}


def test_ignores_a_proxy_for_this_machine(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(Server()) as url:
        assert download(url, tmp_path / "a.pth") == SHA256


def test_tells_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(Server(cuts=(300_000,))) as url:
        download(url, tmp_path / "a.pth", pause=0,
                 progress=lambda held, total: seen.append((held, total)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [held for held, _ in seen] == sorted(held for held, _ in seen)


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(Server()) as url:
        with pytest.raises(OutputError):
            download(url, tmp_path / "file" / "a.pth")


@pytest.mark.parametrize(("head", "html", "text"), [
    (b"  <!DOCTYPE HTML>", True, True), (b"<html>", True, True), (b"plain words\n", False, True),
    (b"\x80\x02\x8a", False, False), (b"PK\x03\x04", False, False), (b"", False, False),
])
def test_sniffs_pages_and_text(head: bytes, html: bool, text: bool) -> None:
    assert (looks_like_html(head), looks_like_text(head)) == (html, text)
