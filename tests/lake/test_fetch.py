from __future__ import annotations

import http.server
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import ForbiddenURI, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import unsigned, uri_of
from pipeline.lake import fetch
from pipeline.lake.fetch import UriReader
from pipeline.redaction import redacted, without_secrets


def reader(base: Path, **changes: Any) -> UriReader:
    return UriReader(**({"base": str(base), "allowed": (), "max_bytes": 1000, "attempts": 3} | changes))


def test_uris_are_read_beside_the_table_and_under_allowed_places(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table/a.jpg").write_bytes(b"inside")
    (tmp_path / "b.jpg").write_bytes(b"outside")
    read = reader(tmp_path / "table")
    assert read("a.jpg") == read(str(tmp_path / "table/a.jpg")) == read(f"file://{tmp_path}/table/a.jpg") == b"inside"
    for uri in ("../b.jpg", str(tmp_path / "b.jpg"), "x/../../b.jpg", "http://example.com/a.jpg", "/etc/passwd"):
        with pytest.raises(ForbiddenURI, match="allowed_uris"):
            read(uri)
    assert reader(tmp_path / "table", allowed=(str(tmp_path),))("../b.jpg") == b"outside"


def test_a_query_belongs_to_the_uri() -> None:
    with fsspec.open("memory://scans/a.jpg#5?id=2", "wb") as file:
        file.write(b"the fifth")
    assert UriReader("memory://scans", (), 100, 1)("a.jpg#5?id=2") == b"the fifth"


def test_a_file_that_is_not_there_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg") as caught:
        reader(tmp_path)("gone.jpg")
    assert caught.value.attempts == 1


@pytest.mark.parametrize("text", ["x" * 300, "data:image/png;base64,AAAA", "A" * 100_000, "a\0b"])
def test_text_that_is_no_uri_fails_at_once_and_is_not_repeated_whole(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        reader(tmp_path)(text)
    assert caught.value.attempts == 1 and len(caught.value.message) < 3000
    assert len(uri_of(text) or "") <= 3000


def test_passing_errors_are_tried_again_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flaky(uri: str, storage: Any) -> Any:
        calls.append(uri)
        if len(calls) < 3:
            raise TimeoutError("slow")
        return real(uri, storage)

    real = fetch.open_store
    (tmp_path / "a.jpg").write_bytes(b"here")
    monkeypatch.setattr(fetch, "open_store", flaky)
    monkeypatch.setattr("pipeline.lake.attempts.FIRST_WAIT", 0.001)
    assert reader(tmp_path)("a.jpg") == b"here"
    calls.clear()
    with pytest.raises(StoreUnavailable, match="2 attempts") as caught:
        reader(tmp_path, attempts=2)("a.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.attempts, again.transient, again.message) == (2, True, caught.value.message)


def test_no_secret_is_shown() -> None:
    assert redacted("s3://key:secret@bucket/path?token=abc") == "s3://bucket/path"
    assert redacted("/local/path") == "/local/path"
    for secret in ("sec/r+et", "/abc", "12/abc", "a#b", "a?b", "12#b"):  # as keys of S3 may look
        assert redacted(f"s3://key:{secret}@bucket/path") == "s3://bucket/path"
    assert redacted("https://me:a/b@host/path") == "https://host/path"
    for plain in ("http://host:9000/a@b", "s3://bucket/a:b@c", "http://[::1]:9000/a@b", "s3://bucket/at@x/y"):
        assert redacted(plain) == plain


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that keeps a secret beside what is allowed, and sends some requests on."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        target = {"/allowed/on": "/allowed/a.jpg", "/allowed/out": "/secret", "/allowed/quiet": "/secret"}.get(path)
        if target:
            self.send_response(302)
            self.send_header("URI" if path.endswith("quiet") else "Location", target)
            self.end_headers()
            return
        body = {"/allowed/a.jpg": b"inside", "/allowed/../secret": b"secret", "/secret": b"secret"}.get(path)
        self.send_response(403 if path == "/allowed/expired" else 404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/secret",
        ".%2e/secret",
        "%252e%252e/secret",
        "../secret",
        "..?x=1/secret",
        "x\\..\\secret",
        "out",
        "quiet",
    ],
)
def test_nobody_leaves_the_allowed_places_of_the_web(tmp_path: Path, web: str, path: str) -> None:
    read = reader(tmp_path, allowed=(f"{web}/allowed",), storage={"key": "of another store"})
    assert read(f"{web}/allowed/a.jpg") == read(f"{web}/allowed/on?x=1") == b"inside"
    with pytest.raises(ForbiddenURI):
        read(f"{web}/allowed/{path}")


def test_an_address_whose_time_is_over_may_be_tried_again(tmp_path: Path, web: str) -> None:
    read = reader(tmp_path, allowed=(f"{web}/allowed",))
    with pytest.raises(StoreUnavailable, match="no access"):
        read(f"{web}/allowed/expired?X-Amz-Signature=abc")
    with pytest.raises(UnreadableImage):
        read(f"{web}/allowed/gone.jpg")


def test_what_a_signed_url_says_of_itself_is_not_told(tmp_path: Path, web: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        reader(tmp_path, allowed=(web,))(f"{web}/gone.jpg?X-Amz-Signature=abcdef")
    assert "gone.jpg" in caught.value.message and "abcdef" not in caught.value.message
    said = "no such https://user:word@host/a.jpg?sig=abcdef, see s3://key:word@bucket/x"
    assert without_secrets(said) == "no such https://host/a.jpg, see s3://bucket/x"
    for url in (
        "https://h/photo(1).jpg?sig=WORD",
        "https://u:pa)ssWORD@h/x",
        "http://[::1]:9000/b?sig=WORD",
        "x_s3://u:WORD@b",
    ):
        assert "WORD" not in without_secrets(f"({url}): no") and without_secrets(f"({url}): no").endswith("): no")
    assert without_secrets("cannot reach [https://s3.museum.example]") == "cannot reach [https://s3.museum.example]"
    assert redacted("s3://[x]y/z?a=b") == "s3://…" and unsigned("s3://[x]y/z") == "s3://[x]y/z"
    started = time.monotonic()
    without_secrets("x" * 1_000_000)
    assert time.monotonic() - started < 1


def test_a_store_keeps_its_options_under_its_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def opened(uri: str, storage: Any) -> Any:
        seen.append((uri, storage))
        raise FileNotFoundError(uri)

    monkeypatch.setattr(fetch, "open_store", opened)
    read = UriReader("s3://archive/scans", ("s3a://archive/scans", "gs://other"), 9, 1, {"key": "k"})
    for uri in ("s3a://archive/scans/a.jpg", "gs://other/a.jpg"):
        with pytest.raises(UnreadableImage):
            read(uri)
    assert seen == [("s3a://archive/scans/a.jpg", {"key": "k"}), ("gs://other/a.jpg", {})]


def test_a_file_is_the_same_however_often_its_url_is_signed() -> None:
    first = unsigned("https://host/a.parquet?id=7&X-Amz-Date=1&X-Amz-Signature=abc")
    assert first == unsigned("https://me:word@host/a.parquet?id=7&X-Amz-Date=2&X-Amz-Signature=def")
    assert first == "https://host/a.parquet?id=7" and unsigned("bucket/a?b=c") == "bucket/a?b=c"


def test_a_right_that_has_run_out_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(uri: str, storage: Any) -> Any:
        raise PermissionError("the token has expired")

    monkeypatch.setattr(fetch, "open_store", refused)
    with pytest.raises(StoreUnavailable, match=r"no access to .*: PermissionError: the token has expired") as caught:
        reader(tmp_path)("a.jpg")
    assert caught.value.attempts == 1
