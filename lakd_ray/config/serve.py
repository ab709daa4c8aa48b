"""Define the configuration section `serve`: the HTTP endpoint, its replicas and its limits."""

import re
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lakd_ray.config.base import Section

Backend = Literal["torch", "torch-bf16", "torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16"]

_PUBLIC_HOST = re.compile(r"\*|(?:(?:\*\.)?[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+")

CPU_BACKENDS: tuple[Backend, ...] = ("torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16")


def validate_backend_device(backend: Backend, gpus: float, setting: str) -> None:
    """Reject a GPU for an inference backend that runs on CPUs only.

    Args:
        backend: the inference backend.
        gpus: fraction of a GPU that is reserved for it.
        setting: name of the setting with this fraction, for the message.

    Raises:
        ValueError: a GPU is reserved for a backend that cannot use it.
    """
    if gpus and backend in CPU_BACKENDS:
        raise ValueError(
            f"backend {backend} runs on CPUs only, and {setting} reserves {gpus:g} GPUs for it: set {setting} to 0, or "
            "use backend torch or torch-bf16"
        )


class CanaryConfig(Section):
    """A second model that serves a part of the traffic."""

    checkpoint: str
    """Checkpoint folder with checksums: an absolute path that every node can read, or s3://bucket/prefix."""
    traffic_fraction: float = Field(0.0, ge=0, le=1)
    """Fraction of recordings that it serves; a request may choose by the header X-Model: stable or canary."""
    replicas: int = Field(1, ge=1)
    """Number of replicas of the canary."""


class ProxyConfig(Section):
    """Limits of the connections to the endpoint, enforced inside Ray Serve's proxy."""

    max_connections: int = Field(512, ge=1)
    """Maximum number of connections. If all are open, the one that has been without a request for longest makes room
    for a new one; if all have a request, a new one is rejected (503)."""
    max_client_connections: int = Field(128, ge=1)
    """Maximum number of connections from one address, in the same way. Behind a gateway all clients have the address of
    the gateway: set it to `max_connections` there."""
    header_timeout_s: float = Field(10.0, gt=0)
    """Maximum seconds from the start of a connection or a request to the end of the request's headers, and between two
    parts of its body (408)."""


class ProxyLimits(ProxyConfig):
    """All limits that Ray Serve's proxy enforces."""

    deadline_s: float = Field(60.0, gt=0)
    """Maximum seconds from a request's arrival to its response (408), including its time in the queue."""
    max_body_bytes: int = Field(101_000_000, ge=1)
    """Maximum declared length of a body (413)."""


class ServeConfig(Section):
    """The HTTP endpoint for predictions: its address, replicas, backend and limits."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs API keys, or `open_access`; put an HTTPS gateway in
    front."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    replicas: int = Field(1, ge=1)
    """Number of replicas of the model."""
    max_replicas: int | None = Field(None, ge=1)
    """Maximum number of replicas for autoscaling between `replicas` and it while requests queue; null: no
    autoscaling."""
    cpus: int = Field(1, ge=1)
    """Logical CPUs of one replica; also its number of threads."""
    gpus: float = Field(0.0, ge=0, le=1)
    """GPU of one replica, or a fraction of a GPU that several replicas share; 0: replicas run on CPUs."""
    backend: Backend = "torch"
    """Inference backend: torch in fp32, bf16 or int8, or an exported graph in onnxruntime (`lakd-ray[onnx]`, fp32 or
    int8) or OpenVINO (`lakd-ray[openvino]`, fp32 or bf16). int8 and graphs run on CPUs only; docs/how-to/export.md
    compares their speed and accuracy."""
    max_upload_mb: float = Field(25.0, gt=0)
    """Maximum size of an upload in MB; larger ones are rejected (413)."""
    max_seconds: float = Field(120.0, gt=0)
    """Maximum duration of a recording in seconds; longer ones are rejected (413)."""
    max_request_audio_s: float = Field(1200.0, gt=0)
    """Maximum seconds of audio that the model processes for one request: its recordings and all segments of their
    timelines, where overlapping segments count each time (413, 422). A stream may cost as much per second of its audio
    as a recording of `max_seconds` (`window_s` divided by `hop_s`)."""
    max_client_audio_s: float = Field(2400.0, gt=0)
    """Maximum seconds of such audio of one client (its API key, else its address) that wait or are in progress; further
    requests are rejected (429) unless they are short enough to take their turn before the rest."""
    max_wait_s: float = Field(10.0, gt=0)
    """Maximum seconds that a request may wait for a decoder and the model; a request that would wait longer at the
    measured speed is rejected before its work starts (503)."""
    max_files: int = Field(32, ge=1)
    """Maximum number of recordings in a batch; its total size may be four times `max_upload_mb`."""
    max_streams: int = Field(8, ge=0)
    """Maximum number of concurrent streams."""
    max_client_streams: int = Field(6, ge=1)
    """Maximum number of concurrent streams of one client (its API key, else its address), so that one client does not
    occupy all; if a server opens the streams of its users with one key, raise it to `max_streams`."""
    max_stream_s: float = Field(600.0, gt=0)
    """Maximum duration of a stream in seconds; its last result covers its last `max_seconds`."""
    deadline_s: float = Field(60.0, gt=0)
    """Maximum seconds from a request's arrival to its response (408), and between two messages of a stream."""
    drain_s: float = Field(20.0, ge=0)
    """Maximum seconds for the requests in progress when the endpoint stops; new ones are rejected (503) meanwhile."""
    memory_mb: float = Field(400.0, gt=0)
    """Maximum memory in MB of the uploads in the ingress, at three bytes of memory for one of an upload. Uploads above
    1 MB are not read until there is room,
    and rejected (503) if that takes too long."""
    proxy: ProxyConfig = ProxyConfig()
    """Limits of connections."""
    decoder_processes: int = Field(2, ge=1)
    """Number of sandboxed processes that decode recordings."""
    api_keys_file: str | None = None
    """File with one API key a line, reloaded when it changes; keys may also be in LAKD_API_KEYS of the driver,
    separated by commas. Without either, only clients on the same machine may use the endpoint."""
    open_access: bool = False
    """Admit clients of other machines without API keys. Set it only behind a gateway that authenticates its clients."""
    public_hosts: tuple[str, ...] = ()
    """Names under which clients reach the endpoint, such as `speech.example.org`, `*.example.org`, or `*` for any name;
    with a port where a page uses one other than 80 and 443. Loopback names and `host` are always accepted. Requests
    with a different Host header are rejected (421), because a web page can direct its own name at any address."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the endpoint besides its own page, such as `https://app.example.org`; `*` for
    all. Requests from other pages are rejected (403)."""
    canary: CanaryConfig | None = None
    """A second model that serves a part of the traffic; null: none."""

    @field_validator("public_hosts")
    @classmethod
    def _validate_public_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _PUBLIC_HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host name, expected one without a scheme: speech.example.org")
        return hosts

    @field_validator("allowed_origins")
    @classmethod
    def _validate_allowed_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin, expected scheme and host: https://app.example.org")
        return origins

    @property
    def proxy_limits(self) -> ProxyLimits:
        """All limits that the proxy enforces."""
        batch_bytes = round(4e6 * self.max_upload_mb)
        return ProxyLimits(
            **self.proxy.model_dump(),
            deadline_s=self.deadline_s,
            max_body_bytes=batch_bytes + 1_000_000,  # the application knows how much of it is the form itself
        )

    @model_validator(mode="after")
    def _validate_audio_limits(self) -> Self:
        names = ("max_seconds", "max_request_audio_s", "max_client_audio_s")
        for lower, upper in pairwise(names):
            if getattr(self, lower) > getattr(self, upper):
                raise ValueError(
                    f"serve.{lower} is {getattr(self, lower):g} s, more than the {getattr(self, upper):g} s of "
                    f"serve.{upper}: raise serve.{upper}"
                )
        return self

    @model_validator(mode="after")
    def _validate_backend_device(self) -> Self:
        validate_backend_device(self.backend, self.gpus, "serve.gpus")
        return self
