"""Define the configuration section `cluster`: the Ray cluster to join, or the size of a local one."""

from pydantic import Field

from lakd_ray.config.base import Section


class ClusterConfig(Section):
    """The Ray cluster to join, named by `address` or RAY_ADDRESS; without both, a local one is started."""

    address: str | None = None
    """Ray address to connect to; `auto` finds a cluster on this machine."""
    connect_s: float = Field(30.0, gt=0, le=3600)
    """Longest wait for a response of a named cluster, in seconds; also of each stage and job that joins it."""
    wait_s: float = Field(3600.0, gt=0)
    """Longest wait for CPUs and GPUs that other jobs use, in seconds; a line in the log names the jobs once a
    minute."""
    log_to_driver: bool = False
    """Show the output of workers besides the progress of stages; Ray's session folder has it in either case."""
    cpus: int | None = Field(None, ge=2)
    """Logical CPUs of a local cluster; null: as many as the experiment needs."""
    object_store_mb: int | None = Field(None, ge=80)
    """Object store size of a local cluster in MB; null: Ray's default."""
    stop_s: float = Field(25.0, ge=0)
    """Longest time in seconds that training may take to save its state after Ctrl-C or SIGTERM. By default, Kubernetes
    and Slurm kill what has not ended 30 s after SIGTERM."""
