"""Fetching one file over HTTP: resumed when interrupted, checked before it gets its name."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Protocol

from sanrobust.errors import DownloadError
from sanrobust.files import output_error, sha256_file, write_text

Progress = Callable[[int, int | None], None]

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_BYTES = 4 << 30

_BLOCK_BYTES = 1 << 18
_SLOWEST_BYTES_S = 100
_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1b")
_GIVE_UP = frozenset({400, 401, 403, 404, 405, 410, 451})


def looks_like_html(head: bytes) -> bool:
    """Return whether a file's first bytes begin a web page."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML_STARTS)


def looks_like_text(head: bytes) -> bool:
    """Return whether a file's first bytes hold printable characters and line ends only."""
    return bool(head) and all(byte >= 32 and byte != 127 or byte in _TEXT_CONTROLS
                              for byte in head)


def download(url: str, path: Path, *, sha256: str | None = None, name: str = "", page: str = "",
             timeout: float = DEFAULT_TIMEOUT_S, max_bytes: int = DEFAULT_MAX_BYTES,
             attempts: int = 3, pause: float = 1.0, progress: Progress | None = None) -> str:
    """Fetch ``url`` to ``path`` and return the SHA-256 of its bytes in hexadecimal.

    Bytes gather in ``path.part``, from which an interrupted download goes on; the file gets its
    name only when it is whole, is no web page and has the expected hash.

    Args:
        url: an https address; plain http is taken for this machine only.
        path: where the file goes; its folder is made.
        sha256: expected hash; None takes whatever comes.
        name: the model's name, for the way out that messages offer.
        page: where a person finds the file, for the same.
        timeout: seconds without any byte after which the connection counts as lost.
        max_bytes: a file longer than this is refused.
        attempts: how often to connect before giving up on a lost connection.
        pause: seconds before the second attempt; the third waits twice as long, and so on.
        progress: called with the bytes so far and the total, None while it is unknown.

    Raises DownloadError when the file cannot be had, and OutputError when it cannot be written.
    """
    job = _Job(url, path, by_hand=_by_hand(name, page), timeout=timeout, max_bytes=max_bytes,
               progress=progress)
    _require_allowed(url)
    _fetch_with_retries(job, attempts, pause)
    digest = _checked(job, sha256)
    try:
        job.part.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    job.notes.unlink(missing_ok=True)
    return digest


@dataclass(frozen=True)
class _Job:
    url: str
    path: Path
    by_hand: str
    timeout: float
    max_bytes: int
    progress: Progress | None

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def notes(self) -> Path:
        return self.path.with_name(self.path.name + ".part.json")

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def error(self, rule: str, seen: str) -> DownloadError:
        return DownloadError(rule, seen=seen, hint=self.by_hand)


@dataclass(frozen=True)
class _Version:
    """What tells one version of the served file from another."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What the server is to compare before it sends the rest; without it nothing is joined."""
        # A weak ETag may not be used to join ranges (RFC 9110, section 13.1.5).
        return next((each for each in (self.etag, self.modified)
                     if each and not each.startswith("W/")), None)


class _Response(Protocol):
    status: int
    headers: Message

    def read1(self, size: int) -> bytes:
        """Return up to ``size`` bytes of the body, those that are there; none at its end."""


class _Lost(Exception):
    """The connection broke or the server was busy; another attempt may go on."""


class _Changed(Exception):
    """The server cannot go on from the bytes held here."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
                         headers: http.client.HTTPMessage,
                         newurl: str) -> urllib.request.Request | None:
        _require_allowed(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _by_hand(name: str, page: str) -> str:
    where = f"open {page} in a browser" if page else "fetch the file another way"
    return f"{where}, save the file and type: sanrobust zoo add {name or 'NAME'} FILE"


def _require_allowed(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and _is_loopback(parts.hostname or "")
    if parts.scheme != "https" and not local:
        raise DownloadError("a download address must start with https://",
                            seen=f"it is {url.partition('?')[0]}",
                            hint="use the publisher's https address")
    if parts.username or parts.password:
        raise DownloadError("a download address must hold no password",
                            seen=f"the one for {parts.hostname} does",
                            hint="use a public address, or fetch the file yourself")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fetch_with_retries(job: _Job, attempts: int, pause: float) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _fetch(job)
            return
        except _Lost as lost:
            if attempt < attempts:
                time.sleep(pause * attempt)
                continue
            known = _read_notes(job)
            held = _size(job.part) if known and known.validator else 0
            if not held:
                job.discard()
            again = f"run again to go on from byte {held}, or " if held else ""
            raise DownloadError("the download must reach its end",
                                seen=f"{job.url} broke off ({lost})",
                                hint=again + job.by_hand) from lost


def _fetch(job: _Job) -> None:
    """Bring ``path.part`` to its full length, starting over where the server wants it."""
    try:
        _transfer(job, resume=True)
    except _Changed:
        job.discard()
        try:
            _transfer(job, resume=False)
        except _Changed as error:
            raise job.error("the server must send the file",
                            f"{job.url} answered {error}") from error


def _transfer(job: _Job, *, resume: bool) -> None:
    known = _read_notes(job) if resume else None
    start = _size(job.part) if known and known.validator else 0
    if known and start == known.total:
        return
    request = urllib.request.Request(job.url, headers=_headers(start, known))
    try:
        with _opener(job.url).open(request, timeout=job.timeout) as response:
            _receive(job, response, start=start, known=known)
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        raise _http_failure(job, status) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Lost(getattr(error, "reason", None) or error) from error
    except ValueError as error:  # an address that does not read, where the server points to one
        raise job.error("the server must send the file",
                        f"{job.url} points to an address that cannot be ({error})") from error


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [_CheckedRedirects()]
    if url.startswith("http:"):
        # A proxy must not be asked for this machine's own address.
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _headers(start: int, known: _Version | None) -> dict[str, str]:
    headers = {"User-Agent": "sanrobust", "Accept-Encoding": "identity"}
    if start and known and known.validator:
        headers["Range"] = f"bytes={start}-"
        headers["If-Range"] = known.validator
    return headers


def _http_failure(job: _Job, status: int) -> Exception:
    if status == 416:
        return _Changed("416")
    if status in _GIVE_UP or status // 100 == 3:  # 3: round in circles
        return job.error("the server must send the file", f"{job.url} answered {status}")
    return _Lost(f"the server answered {status}")


def _receive(job: _Job, response: _Response, *, start: int, known: _Version | None) -> None:
    if "html" in (response.headers.get("Content-Type") or "").lower():
        raise _web_page(job)
    encoding = response.headers.get("Content-Encoding") or "identity"
    if encoding.lower() != "identity":
        raise job.error("the server must send the file as it is",
                        f"{job.url} sends it encoded ({encoding})")
    resumed = response.status == 206
    version = _version(job, response, resumed=resumed)
    if resumed and (version != known or _range_start(response) != start):
        raise _Changed("with a part of another file")
    if version.total is not None and version.total > job.max_bytes:
        raise _too_long(job, version.total)
    try:
        write_text(job.notes, json.dumps(asdict(version)))
        stream = job.part.open("ab" if resumed else "wb")
    except OSError as error:
        raise output_error(job.part, error) from error
    with stream:
        held = _copy(job, response, stream, start if resumed else 0, version.total)
    if version.total is not None and held != version.total:
        raise _Lost(f"{held} of {version.total} bytes came")


def _copy(job: _Job, response: _Response, stream: IO[bytes], held: int, total: int | None) -> int:
    begun = time.monotonic()
    came = 0
    while block := response.read1(_BLOCK_BYTES):
        came += len(block)
        # A server that drips is as good as one that is silent, which the time-out ends.
        waited = time.monotonic() - begun
        if waited > job.timeout and came < waited * _SLOWEST_BYTES_S:
            raise _Lost(f"only {came} bytes came in {waited:.0f} s")
        if held == 0 and looks_like_html(block):
            job.discard()
            raise _web_page(job)
        held += len(block)
        if held > (job.max_bytes if total is None else total):
            job.discard()
            raise _too_long(job, held)
        try:
            stream.write(block)
            stream.flush()
        except OSError as error:
            raise output_error(job.part, error) from error
        if job.progress:
            job.progress(held, total)
    return held


def _version(job: _Job, response: _Response, *, resumed: bool) -> _Version:
    headers = response.headers
    text = headers.get("Content-Range", "").rpartition("/")[2] if resumed else headers.get(
        "Content-Length", "")
    return _Version(job.url, headers.get("ETag"), headers.get("Last-Modified"), _number(text))


def _range_start(response: _Response) -> int | None:
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return _number(text)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _read_notes(job: _Job) -> _Version | None:
    """Return the version of which ``path.part`` is a part; None when that cannot be told."""
    try:
        version = _Version(**json.loads(job.notes.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    is_sound = (isinstance(version.etag, str | None) and isinstance(version.modified, str | None)
                and isinstance(version.total, int) and version.url == job.url)
    return version if is_sound else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _web_page(job: _Job) -> DownloadError:
    return job.error("the server must send the file",
                     f"{job.url} sent a web page (a quota or a confirmation, usually)")


def _too_long(job: _Job, size: int) -> DownloadError:
    job.discard()
    return job.error("the file must have the announced length and be no longer than "
                     f"{job.max_bytes} bytes", f"{job.url} sends at least {size}")


def _checked(job: _Job, sha256: str | None) -> str:
    if _size(job.part) == 0:
        job.discard()
        raise job.error("the server must send the file", f"{job.url} sent nothing")
    digest = sha256_file(job.part)
    if sha256 is not None and digest != sha256.lower():
        job.discard()
        raise job.error(f"the file must have the SHA-256 {sha256}",
                        f"what {job.url} sent has {digest} and was removed")
    return digest
