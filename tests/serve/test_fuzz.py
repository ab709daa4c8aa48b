"""Ten thousand invalid requests to a real endpoint: no 5xx, no crash, and no growth of memory."""

import io
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from support.fuzzing import corrupted_recordings
from support.raw_http import HEAD, RAW, send_raw

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning"),
]

FORM = "multipart/form-data; boundary=x"
KINDS = ["audio/wav", "audio/mpeg", "application/octet-stream", "text/plain", FORM, "é", ""]
LONG = f"?a={5000 * 'b'}"
QUERIES = ["", "?language=de", "?language=%00", "?window_s=1", "?window_s=nan&hop_s=-1", "?top_k=1e9", LONG]
PATHS = ["/v1/emotion"] * 6 + ["/v1/emotion:batch", "/v1/model", "/nothing", "/v1/emotion/../../etc/passwd"]
SECONDS = 5.0


def requests(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield path, content type and body of requests."""
    generator = random.Random(seed)
    for _, content in corrupted_recordings(count, seed=seed):
        kind = generator.choice(KINDS) if generator.random() < 0.3 else "audio/wav"
        path = generator.choice(PATHS) + generator.choice(QUERIES)
        if generator.random() < 0.15:
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            yield path, FORM, (head + content + b"\r\n--x--\r\n")[: generator.randrange(1, len(content) + 100)]
        else:
            yield path, kind, content


def bombs() -> Iterator[bytes]:
    """Yield small files that decode to hours of audio, and files whose header has a false length."""
    for format, seconds in (("FLAC", 3600), ("OGG", 1800), ("MP3", 600)):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", 16_000, 1, format=format) as file:
            for _ in range(seconds // 60):
                file.write(np.zeros(60 * 16_000, np.float32))
        yield buffer.getvalue()[:990_000]
    for size in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(1600, np.float32), 16_000, format="WAV")
        content = bytearray(buffer.getvalue())
        content[40:44] = content[4:8] = size
        yield bytes(content)


def drip(address: tuple[str, int]) -> int:
    """Send one byte at a time until the server ends the upload; return the status, 0 without a response."""
    with socket.create_connection(address, timeout=SECONDS + 20) as line:
        line.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        line.settimeout(0.5)
        deadline = time.monotonic() + SECONDS + 20
        while time.monotonic() < deadline:
            try:
                line.sendall(b"R")
                if response := line.recv(4096):
                    return int(response.split(b" ", 2)[1])
                return 0
            except TimeoutError:
                continue
            except OSError:
                return 0
    raise AssertionError("the server did not end a slow upload")


def memory_mb(process: psutil.Process) -> dict[str, float]:
    """Return the memory of the processes that handle untrusted input, by their role."""
    usage: Counter[str] = Counter()
    for child in process.children(recursive=True):
        try:
            title = " ".join([child.name(), *child.cmdline()])
            for name in ("ProxyActor", "Ingress", "ModelReplica", "forkserver"):
                if name in title:
                    usage[name] += child.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
    return dict(usage)


def test_invalid_requests_cause_no_server_error(
    endpoint: Callable[..., tuple[str, "subprocess.Popen[str]"]], tmp_path: Path
) -> None:
    url, process = endpoint(deadline_s=SECONDS)
    parts = urlsplit(url)
    address = str(parts.hostname), int(parts.port or 0)
    statuses: Counter[tuple[str, int]] = Counter()

    def send(request: tuple[str, str, bytes]) -> None:
        path, kind, content = request
        headers = {"Content-Type": kind.encode("latin-1")} if kind else {}
        try:
            response = client.post(path, content=content, headers=headers)
        except httpx.RemoteProtocolError:  # closed before the complete body was read, as after a 413
            statuses["corrupted", 0] += 1
            return
        assert response.status_code < 500, (path, kind, response.status_code, response.text[:300], content[:80])
        statuses["corrupted", response.status_code] += 1

    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(send, requests(1_000, seed=0)))
        before = memory_mb(psutil.Process(process.pid))
        for seed in range(1, 11):
            list(pool.map(send, requests(1_000, seed=seed)))
        for bomb in bombs():
            send(("/v1/emotion", "audio/flac", bomb))
        for _ in range(20):
            for request, status in zip(RAW, pool.map(send_raw, [address] * len(RAW), RAW), strict=True):
                assert request.accepts(status), (request.content[:200], status)
                statuses["raw", status or 0] += 1
        for status in pool.map(drip, [address] * 8):
            assert status in (0, 408), status
            statuses["slow", status] += 1
        fuzzing = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--workers", "4",
                "--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", "150",
                "--suppress-health-check", "all", "--seed", "1", "--warnings", "off", "--no-color",
            ],
            check=False, capture_output=True, text=True, timeout=900, cwd=tmp_path,
        )  # fmt: skip
        after = memory_mb(psutil.Process(process.pid))
        valid = io.BytesIO()
        soundfile.write(valid, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000, format="WAV")
        response = client.post("/v1/emotion", content=valid.getvalue(), headers={"Content-Type": "audio/wav"})
    print(dict(statuses), before, after, fuzzing.stdout[-1500:], sep="\n")
    assert fuzzing.returncode == 0, fuzzing.stdout[-3000:]
    assert response.status_code == 200
    assert set(after) == set(before)
    for name, usage in after.items():
        assert usage < before[name] + 60, f"{name} grew from {before[name]:.0f} to {usage:.0f} MB"
