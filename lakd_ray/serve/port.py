"""Find the endpoint's port without importing Ray, which takes seconds to load."""

import socket

from lakd_ray.config import ServeConfig
from lakd_ray.errors import ResourceError


def resolve_port(config: ServeConfig) -> int:
    """Return the port to listen on, after a check that it is free.

    Ray's proxies share ports with one another, so two endpoints on one port would go unnoticed.

    Raises:
        ResourceError: the port is taken, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.create_server((config.host, config.port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {config.host} port {config.port}: {error}; set serve.port to a free port, or to 0"
        ) from None
