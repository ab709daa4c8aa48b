"""Faults of S3 servers that are down, die during a request, or refuse it: real processes, real sockets."""

import os
import shutil
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pytest
from support.s3_server import BUCKET, S3Server, running_s3

from lakd_ray import storage
from lakd_ray.errors import StorageError
from lakd_ray.storage import filesystems, publishing

FOLDER = f"s3://{BUCKET}/faults"


def listed(folder: str) -> list[str]:
    return [info.location for info in storage.list_files(folder)]


CALLS: list[Callable[[str], object]] = [
    storage.read_bytes,
    storage.read_table,
    storage.exists,
    listed,
    storage.list_folders,
    storage.delete,
    lambda location: storage.write_bytes(location, b"content"),
]


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "MAX_ATTEMPTS", 2)


@pytest.fixture
def killable_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that a test may kill."""
    with running_s3(tmp_path) as server:
        yield server


@pytest.mark.usefixtures("few_attempts")
def test_server_that_is_down(s3, monkeypatch):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        started = time.monotonic()
        for call in (storage.read_bytes, listed, CALLS[-1]):
            with pytest.raises(
                StorageError, match=rf"{s3}/a: no response from {endpoint} in 2 attempts.*AWS_ENDPOINT_URL"
            ):
                call(f"{s3}/a")
        assert time.monotonic() - started < 60


def test_refused_key_is_not_retried(s3, monkeypatch):
    """With all retries one call would take more than half a minute."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    started = time.monotonic()
    for call in CALLS:
        with pytest.raises(StorageError, match=r"refuses the credentials.*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACC"):
            call(f"{s3}/a")
    assert time.monotonic() - started < 30


def test_no_key(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    started = time.monotonic()
    for call in CALLS:
        with pytest.raises(StorageError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            call(f"{s3}/a")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "call", [storage.read_bytes, storage.read_table, listed, lambda location: storage.write_bytes(location, b"content")]
)
def test_no_bucket(s3, call):
    with pytest.raises(StorageError, match="the bucket no-such-bucket does not exist"):
        call("s3://no-such-bucket/a")


@pytest.mark.parametrize(
    "name",
    ["with space", "plus+and&", "hash#and?", "100%25", unicodedata.normalize("NFC", "é"), "e\u0301", "日本 ö.wav"],
)
def test_names(s3, name):
    location = storage.join(s3, "names", name, name)
    storage.write_bytes(location, name.encode())
    assert storage.read_bytes(location) == name.encode()
    assert listed(storage.join(s3, "names", name)) == [location]
    assert storage.list_folders(storage.join(s3, "names")).count(name) == 1
    storage.delete(location)
    assert not storage.exists(location)


def test_listing_shows_size_and_version(s3):
    location = storage.join(s3, "versions", "a")
    storage.write_bytes(location, b"first")
    storage.write_bytes(storage.join(s3, "versions-too"), b"not below")
    (first,) = storage.list_files(storage.join(s3, "versions"))
    assert (first.location, first.size, first.name) == (location, 5, "a")
    assert list(storage.list_files(storage.join(s3, "versions") + "/")) == [first]
    storage.write_bytes(location, b"other")
    (second,) = storage.list_files(storage.join(s3, "versions"))
    assert second.version != first.version
    assert abs(second.modified - time.time()) < 600


def write_shards(count: int = 4) -> dict[str, list[pa.Table]]:
    """Write shards and return the row groups by location; one row group is larger than a part of an upload."""
    random = np.random.default_rng(0)
    shards = {}
    for number in range(count):
        groups = [pa.table({"audio": [random.bytes(3_000_000 if number == 1 else 30_000)]}) for _ in range(4)]
        shards[f"{FOLDER}/shard {number}.parquet"] = groups
        storage.write_table(f"{FOLDER}/shard {number}.parquet", pa.concat_tables(groups), row_group_size=1)
    return shards


@pytest.mark.timeout(200)
def test_reads_survive_a_restart(killable_server):
    shards = write_shards()
    read: dict[str, list[pa.Table]] = {}
    restarted = threading.Thread(target=killable_server.start)
    for location in shards:
        if len(read) == 1:
            killable_server.kill()
            restarted = threading.Timer(1.0, killable_server.start)  # the next read starts while the server is down
            restarted.start()
        read[location] = storage.read_row_groups(location, [0, 1, 2, 3], ["audio"])
    restarted.join()
    assert read == shards


@contextmanager
def cutting_proxy(endpoint: str, after: int) -> Iterator[str]:
    """Forward to an endpoint, and close the first response that is larger than `after` bytes at that size."""
    target = urlparse(endpoint)
    cuts = [after]

    def pump(source: socket.socket, sink: socket.socket, limits: list[int]) -> None:
        passed = 0
        with suppress(OSError):
            while content := source.recv(1 << 16):
                passed += len(content)
                if limits and passed > limits[0]:
                    limits.clear()
                    break
                sink.sendall(content)
        for connection in (source, sink):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection((str(target.hostname), int(target.port or 80)))
                opened.extend((client, server))
                for source, sink, limits in ((client, server, []), (server, client, cuts)):
                    threading.Thread(target=pump, args=(source, sink, limits), daemon=True).start()

    opened: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        accepting = threading.Thread(target=serve, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        for connection in opened:
            connection.close()
    assert not cuts, "no response was truncated"


def test_a_truncated_response_is_requested_again(s3, monkeypatch):
    content = os.urandom(4_000_000)
    storage.write_bytes(f"{s3}/cut", content)
    with cutting_proxy(os.environ["AWS_ENDPOINT_URL"], after=1_000_000) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.read_bytes(f"{s3}/cut") == content


@pytest.fixture
def kill_during_upload(
    killable_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float | None], None]]:
    """Kill the server in the middle of the next upload, and start it again after some seconds or never."""
    threads: list[threading.Thread] = []

    def arm(seconds: float | None) -> None:
        def copy(source, sink, length):
            sink.write(source.read(12 << 20))
            killable_server.kill()
            if seconds is not None:
                threads.append(threading.Timer(seconds, killable_server.start))
                threads[0].start()
            shutil.copyfileobj(source, sink, length)

        monkeypatch.setattr(publishing, "copy_stream", copy)

    yield arm
    for thread in threads:
        thread.join()


@pytest.mark.slow  # half a minute
@pytest.mark.timeout(200)
def test_writes_survive_a_restart(kill_during_upload):
    content = os.urandom(40 << 20)
    kill_during_upload(1.0)
    storage.write_bytes(f"{FOLDER}/large", content)
    assert storage.read_bytes(f"{FOLDER}/large") == content


@pytest.mark.timeout(200)
@pytest.mark.usefixtures("few_attempts")
def test_a_failed_write_leaves_the_previous_content(killable_server, kill_during_upload, monkeypatch):
    storage.write_bytes(f"{FOLDER}/large", b"before")
    kill_during_upload(None)
    for name in ("large", "new"):
        with pytest.raises(StorageError, match=f"cannot write {FOLDER}/{name}: no response from"):
            storage.write_bytes(f"{FOLDER}/{name}", os.urandom(24 << 20))
    monkeypatch.setattr(publishing, "copy_stream", shutil.copyfileobj)
    killable_server.start()
    killable_server.until_ready()
    assert listed(FOLDER) == [f"{FOLDER}/large"]
    assert storage.read_bytes(f"{FOLDER}/large") == b"before"
