"""Define the configuration section `cluster`: the Ray cluster to join, or the size of a local one."""

from pydantic import Field

from lakd_ray.config.base import Section


class ClusterConfig(Section):
    """The Ray cluster to join, named by `address` or RAY_ADDRESS; without both, a local one is started."""

    address: str | None = None
    """Ray address to connect to; `auto` finds a cluster on this machine."""
    log_to_driver: bool = False
    """Show the output of workers besides the progress of stages; Ray's session folder has it in either case."""
    cpus: int | None = Field(None, ge=2)
    """Logical CPUs of a local cluster; null: as many as the experiment needs."""
    object_store_mb: int | None = Field(None, ge=80)
    """Object store size of a local cluster in MB; null: Ray's default."""
    stop_s: float = Field(25.0, ge=0)
    """Longest time in seconds that training may take to save its state after Ctrl-C or SIGTERM. By default, Kubernetes
    and Slurm kill what has not ended 30 s after SIGTERM."""
