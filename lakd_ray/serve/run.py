"""The port of the endpoint. Without Ray, which takes seconds to load."""

import socket

from lakd_ray.config import ServeConfig
from lakd_ray.errors import ResourceError


def resolve_port(config: ServeConfig) -> int:
    """The port to listen on. Ray's proxies share ports with one another, so two endpoints on one would go unnoticed.

    Raises:
        ResourceError: it is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.create_server((config.host, config.port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {config.host} port {config.port}: {error}; choose another serve.port, 0 for a free one"
        ) from None
