"""Hostile clients for the soak test: bounded attacks on an endpoint on loopback, from an address of their own.

`soak.py` runs this file as a program, which prints the number of each outcome as JSON.
"""

import argparse
import io
import json
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import soundfile
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

RATE = 16_000
ADDRESS = "127.0.0.2"
PAUSE_S = 0.5
SLOW_CONNECTIONS = 100
HEAD = b"POST /v1/emotion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/wav\r\n"


def recording(seconds: float, *, format: str = "WAV", subtype: str | None = None, level: float = 0.1) -> bytes:
    """Return an encoded recording of noise; silence if the level is 0."""
    noise = level * np.random.default_rng(0).standard_normal(round(seconds * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise.clip(-1, 1), RATE, format=format, subtype=subtype)
    return buffer.getvalue()


class Attacker(threading.Thread):
    """A hostile client, which chooses a kind of attack at random."""

    def __init__(self, url: str, outcomes: Counter[str], halt: threading.Event, seed: int):
        super().__init__(daemon=True)
        self._url, self._outcomes, self._halt = url, outcomes, halt
        self._random = random.Random(seed)
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        formats = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
        self._files = [recording(2.0, format=format, subtype=subtype) for format, subtype in formats]
        self._bomb = recording(1200.0, format="FLAC", level=0.0)
        self._long = recording(100.0, format="FLAC", level=0.0)
        self._attacks: list[Callable[[], str]] = [
            self.send_damaged,
            self.send_damaged,
            self.abort_upload,
            self.abort_upload,
            self.send_too_much,
            self.send_chunks_without_end,
            self.send_bomb,
            self.send_long_timeline,
            self.send_form,
            self.send_odd_form,
            self.open_stream,
            self.open_stream,
            self.flood_stream,
            self.send_no_http,
            self.send_tiny_parts,
        ]

    def run(self) -> None:
        """Attack until the end of the phase."""
        transport = httpx.HTTPTransport(local_address=ADDRESS)
        with httpx.Client(base_url=self._url, timeout=60, transport=transport) as self._client:
            while not self._halt.wait(2 * PAUSE_S * self._random.random()):
                attack = self._random.choice(self._attacks)
                try:
                    outcome = attack()
                except (httpx.HTTPError, OSError, WebSocketException) as error:
                    outcome = type(error).__name__
                self._outcomes[f"{attack.__name__} {outcome}"] += 1

    def _post(self, content: Any, path: str = "/v1/emotion", content_type: str = "audio/wav") -> str:
        return str(self._client.post(path, content=content, headers={"Content-Type": content_type}).status_code)

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=20, source_address=(ADDRESS, 0))

    def _damage(self, content: bytes) -> bytes:
        damaged = bytearray(content)
        for _ in range(self._random.randint(1, 30)):
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged[: self._random.randrange(20, len(damaged))] if self._random.random() < 0.3 else damaged)

    def send_damaged(self) -> str:
        """Send a recording with flipped bits, perhaps cut off."""
        return self._post(self._damage(self._random.choice(self._files)))

    def abort_upload(self) -> str:
        """Close the connection in the middle of an upload."""
        with self._connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 3800000\r\n\r\n" + bytes(self._random.randrange(2_000_000)))
        return "closed"

    def send_too_much(self) -> str:
        """Send a recording that is larger than the limit."""
        return self._post(bytes(26_000_000))

    def send_chunks_without_end(self) -> str:
        """Send a body without a declared length up to 5 MB, then leave it open for a while."""
        with self._connect() as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(80):
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            self._halt.wait(1.0)
        return "closed"

    def send_bomb(self) -> str:
        """Send a small file that decodes to twenty minutes."""
        return self._post(self._bomb)

    def send_long_timeline(self) -> str:
        """Request a timeline of overlapping segments of a compressible recording."""
        return self._post(self._long, "/v1/emotion?window_s=10&hop_s=0.5")

    def send_form(self) -> str:
        """Send a form of recordings, some of them damaged."""
        files = [
            ("file", (str(n), self._random.choice([self._files[0], self._damage(self._files[1])]))) for n in range(8)
        ]
        return str(self._client.post("/v1/emotion:batch", files=files).status_code)

    def send_odd_form(self) -> str:
        """Send a form with too many parts, a part with a long header, or without an end."""
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
        bodies = [
            part + b"\r\n\r\n" * 2000,
            part + b"X-A: " + b"b" * 500_000,
            (part + b"\r\n\r\n") * 2000 + b"--x--\r\n",
        ]
        return self._post(self._random.choice(bodies), "/v1/emotion:batch", "multipart/form-data; boundary=x")

    def _stream(self, format: str) -> Any:
        url = self._url.replace("http", "ws") + f"/v1/stream?format={format}"
        return connect(url, source_address=(ADDRESS, 0), max_size=None, proxy=None)

    def open_stream(self) -> str:
        """Open a stream with good or bad messages; end it, or leave without a word."""
        with self._stream(self._random.choice(["pcm16", "webm"])) as stream:
            stream.send(self._random.choice([self._files[0][44:], b"junk" * 1000, "no JSON", json.dumps([1])]))
            if self._random.random() < 0.3:
                stream.socket.close()
                return "left"
            stream.send(json.dumps({"type": "end"}))
            with suppress(WebSocketException, TimeoutError):
                while True:
                    stream.recv(timeout=20)
            return str(stream.close_code)

    def flood_stream(self) -> str:
        """Send up to 20 MB of audio as fast as possible, and leave after a second."""
        with self._stream("pcm16") as stream:
            leave = threading.Timer(1.0, stream.socket.shutdown, [socket.SHUT_RDWR])
            leave.start()
            try:
                for _ in range(40):
                    stream.send(bytes(500_000))
            except WebSocketException:
                return "left"
            finally:
                leave.cancel()
        return "closed"

    def send_no_http(self) -> str:
        """Send bytes that are not HTTP, or headers without an end."""
        with self._connect() as connection:
            connection.sendall(self._random.choice([b"\x16\x03\x01\x02\x00", bytes(1000), b"GET /" + b"a" * 200_000]))
            with suppress(OSError):
                return connection.recv(4096)[9:12].decode() or "closed"
        return "closed"

    def send_tiny_parts(self) -> str:
        """Send pipelined requests, a body in chunks of a byte, or a stream of empty frames, 2 MB in all."""
        upgrade = (
            b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head, part = self._random.choice([
            (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
            (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
            (upgrade, b"\x89\x80\0\0\0\0"),  # pings
            (upgrade, b"\x82\x80\0\0\0\0"),  # messages
        ])  # fmt: skip
        with self._connect() as connection:
            connection.sendall(head)
            connection.settimeout(1.0)
            connection.sendall(part * (2_000_000 // len(part)))
        return "closed"


def hold_slow_connections(address: tuple[str, int], halt: threading.Event) -> None:
    """Hold connections that never send a complete request, and replace those that the server closes."""
    held: list[socket.socket] = []
    while not halt.wait(1.0):
        for connection in list(held):
            connection.setblocking(False)
            try:
                connection.send(b"a")
                is_open = connection.recv(4096) == b"more"
            except BlockingIOError:
                is_open = True
            except OSError:
                is_open = False
            if not is_open:
                connection.close()
                held.remove(connection)
        while len(held) < SLOW_CONNECTIONS and not halt.is_set():
            with suppress(OSError):
                held.append(socket.create_connection(address, timeout=5, source_address=(ADDRESS, 0)))
                held[-1].sendall(b"" if len(held) % 2 else HEAD)
    for connection in held:
        connection.close()


def main() -> None:
    """Attack an endpoint for a while."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--attackers", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    os.nice(10)  # other machines would send this load
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it logs a traceback for a socket that was closed here
    outcomes: Counter[str] = Counter()
    halt = threading.Event()
    parts = urlsplit(options.url)
    address = (parts.hostname or "", parts.port or 0)
    threads: list[threading.Thread] = [
        Attacker(options.url, outcomes, halt, options.seed + index) for index in range(options.attackers)
    ]
    threads.append(threading.Thread(target=hold_slow_connections, args=(address, halt), daemon=True))
    for thread in threads:
        thread.start()
    time.sleep(options.seconds)
    halt.set()
    for thread in threads:
        thread.join(timeout=70)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
