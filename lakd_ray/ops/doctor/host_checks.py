"""Checks of the machine that they run on, without Ray, so that a Ray task can run them on each node of a cluster.

A limit that certainly breaks a stage is a failure; one that makes it slow or fragile is a warning.
"""

import os
import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lakd_ray import environment, extension_builds, storage
from lakd_ray.config import Experiment
from lakd_ray.devices import count_visible_gpus, is_architecture_supported
from lakd_ray.ops.doctor.check import Check, CheckResult, Status

_CRITICAL_PACKAGES = ("torch", "ray", "deepspeed")  # an unsupported version of these is a failure, of others a warning
_DEEPSPEED_OP = "deepspeed_shm_comm"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_MIN_DRIVERS = {"11": 450, "12": 525, "13": 580}  # by major version of CUDA, for Linux
_MEMINFO, _SHM = "/proc/meminfo", "/dev/shm"
# Defaults of Ray for its object store: fraction of memory, maximum, and maximum outside /dev/shm.
_STORE_FRACTION, _MAX_STORE_BYTES, _MAX_SLOW_STORE_BYTES = 0.3, 200 * 10**9, 10**10
_PROCESS_BYTES, _MIN_PROCESS_BYTES = 10**9, 250 * 10**6  # typical and minimal memory of a worker with torch and Ray
_EXTRA_PROCESSES = 3  # the driver and processes of Ray
_MIN_OPEN_FILES, _RECOMMENDED_OPEN_FILES = 1024, 8192  # Ray recommends the latter
_MIN_TEMP_BYTES, _MIN_INODES = 200 * 10**6, 1000
_MAX_TEMP_USAGE = 0.95  # above it, Ray does not spill objects to the disk


def host_checks(config: Experiment) -> list[Check]:
    """Return all checks of the local machine."""
    checks: dict[str, Callable[[], CheckResult]] = {
        "versions": check_versions,
        "compiler": lambda: check_compiler(config),
        "build locks": check_build_locks,
        "gpu": lambda: check_gpu(config),
        "memory": lambda: check_memory(config),
        "shared memory": lambda: check_shared_memory(config),
        "open files": check_open_files,
        "temporary folder": check_temporary,
        "home directory": check_home,
    }
    return [Check(name, check) for name, check in checks.items()]


def node_checks(config: Experiment, *, gpu: bool) -> list[Check]:
    """Return the checks that apply to a single node of a cluster."""
    general = {"versions", "compiler", "build locks", "open files", "temporary folder"} | ({"gpu"} if gpu else set())
    return [check for check in host_checks(config) if check.name in general]


def check_versions() -> CheckResult:
    """Compare the versions of Python and of packages with the requirements of lakd-ray."""
    try:
        package = metadata.metadata("lakd-ray")
    except metadata.PackageNotFoundError:
        return CheckResult("versions", "warn", "lakd-ray is not installed", "its requirements", "pip install lakd-ray")
    versions = {"Python": platform.python_version()}
    python = SpecifierSet(package["Requires-Python"] or "")
    wrong = [] if python.contains(versions["Python"]) else [("Python", f"Python {python}")]
    for requirement in map(Requirement, metadata.requires("lakd-ray") or ()):
        if requirement.marker is not None:
            continue  # extras
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if requirement.name in _CRITICAL_PACKAGES or version == "missing":
            versions[requirement.name] = version
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            versions[requirement.name] = version
            wrong.append((requirement.name, f"{requirement.name}{requirement.specifier}"))
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not wrong:
        return CheckResult("versions", "ok", found)
    is_critical = any(name in ("Python", *_CRITICAL_PACKAGES) or versions[name] == "missing" for name, _ in wrong)
    expected = ", ".join(text for _, text in wrong)
    hint = "install again: uv pip install -c constraints.txt ."
    return CheckResult("versions", "fail" if is_critical else "warn", found, expected, hint)


def check_compiler(config: Experiment) -> CheckResult:
    """Check the tools with which DeepSpeed builds its CPU op: ninja for each process, g++ unless the op is cached."""
    tools = {"g++": os.environ.get("CXX", "c++"), "ninja": "ninja"}
    missing = [name for name, command in tools.items() if shutil.which(command) is None]
    if not missing:
        return CheckResult("compiler", "ok", ", ".join(str(shutil.which(command)) for command in tools.values()))
    hints = {
        "g++": "install g++ (Debian: apt-get install g++)",
        "ninja": "activate the virtual environment, which has ninja",
    }
    is_optional = _trains_on_gpu(config) or (missing == ["g++"] and _is_op_built())  # GPUs do not use this op
    return CheckResult(
        "compiler",
        "warn" if is_optional else "fail",
        f"no {' and no '.join(missing)} on PATH",
        "g++ and ninja, with which DeepSpeed builds an op on first use",
        "; ".join(hints[name] for name in missing),
    )


def _trains_on_gpu(config: Experiment) -> bool:
    return bool(config.train.gpu if config.train.gpu != "auto" else count_visible_gpus())


def _is_op_built() -> bool:
    """Return whether the extensions folder of torch has a build of the op."""
    return any(extension_builds.extensions_folder().rglob(f"{_DEEPSPEED_OP}/{_DEEPSPEED_OP}.so"))


def check_build_locks() -> CheckResult:
    """Check for locks that killed builds of extensions have left; training removes them if it may."""
    locks = extension_builds.find_locks(extension_builds.extensions_folder())
    stale = [lock for lock in locks if extension_builds.is_stale(lock)]
    if not stale:
        held = ", ".join(f"{lock} of a build in progress" for lock in locks)
        return CheckResult("build locks", "ok", held or "none")
    names = ", ".join(map(str, stale))
    can_remove = all(os.access(lock.parent, os.W_OK) for lock in stale)
    hint = "training removes it" if can_remove else f"delete it as its owner, or set TORCH_EXTENSIONS_DIR: rm {names}"
    return CheckResult("build locks", "warn" if can_remove else "fail", f"{names} of a killed build", "none", hint)


def check_gpu(config: Experiment) -> CheckResult:
    """Check that the driver and the GPUs are ones for which torch was built, and, if configured, have bf16."""
    if config.train.gpu is False and not config.serve.gpus:
        return CheckResult("gpu", "ok", "not used (train.gpu: false)")
    import torch  # takes a second

    if not torch.cuda.is_available():
        return _check_missing_gpu(config, torch.__version__, torch.version.cuda)
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{gpu.name} with {storage.format_bytes(gpu.total_memory)}" for gpu in gpus)
    architectures = torch.cuda.get_arch_list()
    if unsupported := [gpu.name for gpu in gpus if not is_architecture_supported(gpu.major, gpu.minor, architectures)]:
        name = next(gpu for gpu in gpus if gpu.name == unsupported[0])
        return CheckResult(
            "gpu",
            "fail",
            f"{found}; {name.name} has compute capability {name.major}.{name.minor}",
            f"one that torch {torch.__version__} was built for: {', '.join(architectures)}",
            "hide this GPU (CUDA_VISIBLE_DEVICES), install a build of torch for it, or set train.gpu: false",
        )
    if config.train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        hint = "set train.precision: fp32, or use GPUs of the Ampere generation or later"
        return CheckResult("gpu", "fail", f"{found}, without bf16", "bf16, for train.precision: bf16", hint)
    return CheckResult("gpu", "ok", found)


def _check_missing_gpu(config: Experiment, torch_version: str, cuda_version: str | None) -> CheckResult:
    """Explain why torch cannot use a GPU; that is fine with `train.gpu: auto` on a machine without a driver."""
    is_required = config.train.gpu is True or config.serve.gpus > 0
    driver, minimum = read_driver_version(), _MIN_DRIVERS.get((cuda_version or "").partition(".")[0])
    if driver is None and not is_required:
        return CheckResult("gpu", "ok", "none, training on CPUs (train.gpu: auto)")
    status: Status = "fail" if is_required else "warn"
    without = "set train.gpu: false and serve.gpus: 0"
    if cuda_version is None:
        found = f"torch {torch_version}, which is built without CUDA"
        return CheckResult("gpu", status, found, "a GPU", f"install torch with CUDA, or {without}")
    found = f"torch {torch_version} cannot use a GPU"
    if driver is None:
        hint = f"check that nvidia-smi works on this machine, or {without}"
        return CheckResult("gpu", status, f"{found}: there is no NVIDIA driver", "a GPU", hint)
    if minimum is not None and int(driver.partition(".")[0]) < minimum:
        return CheckResult(
            "gpu",
            status,
            f"{found}: the NVIDIA driver is {driver}",
            f"{minimum} or later, for CUDA {cuda_version} of this torch",
            f"update the driver, install torch for an earlier CUDA, or {without}",
        )
    hint = f"check that nvidia-smi lists the GPU, and CUDA_VISIBLE_DEVICES, or {without}"
    return CheckResult("gpu", status, f"{found} with NVIDIA driver {driver}", "a GPU", hint)


def read_driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as 580.65.06; None without a driver."""
    try:
        lines = _DRIVER_FILE.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    match = re.search(r"\b(\d{3,}(\.\d+)+)\b", lines[0] if lines else "")
    return match[1] if match else None


def check_memory(config: Experiment) -> CheckResult:
    """Compare the memory of the machine or container with the object store and the worker processes."""
    total, available = _read_memory()
    store = _object_store_bytes(config, total)
    processes = _count_processes(config)
    minimum, typical = store + processes * _MIN_PROCESS_BYTES, store + processes * _PROCESS_BYTES
    found = f"{storage.format_bytes(total)}, {storage.format_bytes(available)} available"
    expected = f"{storage.format_bytes(typical)}: object store {storage.format_bytes(store)} and {processes} processes"
    hint = (
        "lower train.parallel_runs, train.workers, tune.max_concurrent_trials or cluster.object_store_mb, or use a "
        "machine with more memory"
    )
    if total < minimum:
        return CheckResult("memory", "fail", found, expected, hint)
    if available < typical:
        return CheckResult("memory", "warn", found, expected, hint)
    return CheckResult("memory", "ok", found)


def check_shared_memory(config: Experiment) -> CheckResult:
    """Check that the object store fits into /dev/shm; Ray uses a disk otherwise, or fails if the store is large."""
    if not Path(_SHM).is_dir():
        hint = "mount a tmpfs there, or start the container with shared memory"
        return CheckResult("shared memory", "warn", f"there is no {_SHM}, so a disk is used", "memory there", hint)
    free, store = shutil.disk_usage(_SHM).free, _object_store_bytes(config, _read_memory()[0])
    found = f"{storage.format_bytes(free)} free in {_SHM}, object store {storage.format_bytes(store)}"
    if free >= store:
        return CheckResult("shared memory", "ok", found)
    slow = store <= _MAX_SLOW_STORE_BYTES or os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
    status: Status = "warn" if slow else "fail"
    hint = f"enlarge it (docker run --shm-size), or set cluster.object_store_mb below {free // 1024**2}"
    return CheckResult("shared memory", status, found, "space for the object store, since a disk is slow", hint)


def check_open_files() -> CheckResult:
    """Check the hard limit of open files per process, to which Ray raises the soft limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or limit >= _RECOMMENDED_OPEN_FILES:
        return CheckResult("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit}")
    hint = f"raise the hard limit (limits.conf, or LimitNOFILE of the service) to {_RECOMMENDED_OPEN_FILES}"
    status: Status = "fail" if limit < _MIN_OPEN_FILES else "warn"
    return CheckResult("open files", status, f"at most {limit}", f"{_RECOMMENDED_OPEN_FILES} or more", hint)


def check_temporary() -> CheckResult:
    """Check the space in the folders for temporary files and for the session and spilled objects of Ray."""
    default = tempfile.gettempdir()
    folders = dict.fromkeys([default, str(storage.nearest_existing_parent(os.environ.get("RAY_TMPDIR") or default))])
    found, expected = [], []
    is_full = False
    for folder in folders:
        with tempfile.TemporaryFile(dir=folder) as probe:  # the message of an OSError has the folder's name
            probe.write(b"lakd")
        usage, inodes = shutil.disk_usage(folder), _free_inodes(folder)
        found.append(f"{storage.format_bytes(usage.free)} free in {folder}")
        if usage.free < _MIN_TEMP_BYTES:
            expected.append(f"{storage.format_bytes(_MIN_TEMP_BYTES)} free in {folder}")
        if inodes is not None and inodes < _MIN_INODES:
            found[-1] += f" and {inodes} free inodes"
            expected.append(f"{_MIN_INODES} free inodes in {folder}")
        is_full = is_full or 1 - usage.free / usage.total > _MAX_TEMP_USAGE
    if len(os.fsencode(environment.temporary_folder())) > environment.MAX_TEMPORARY_PATH:
        expected.append(f"a name of at most {environment.MAX_TEMPORARY_PATH} bytes, for the sockets of Ray")
    hint = "free some space, or set TMPDIR and RAY_TMPDIR to a folder on a different disk"
    if expected:
        return CheckResult("temporary folder", "fail", ", ".join(found), ", ".join(expected), hint)
    if is_full:
        limit = f"a disk less than {_MAX_TEMP_USAGE:.0%} full, since Ray does not spill objects to a fuller one"
        return CheckResult("temporary folder", "warn", ", ".join(found), limit, hint)
    return CheckResult("temporary folder", "ok", ", ".join(found))


def check_home() -> CheckResult:
    """Check that libraries can write caches and the token of Ray to the home directory."""
    if folder := environment.replaced_home():
        found = f"nothing can be written there; caches and the token of Ray are in {folder}"
        hint = "set HOME to a folder that this user can write"
        return CheckResult("home directory", "warn", found, "a folder that remains", hint)
    return CheckResult("home directory", "ok", str(Path.home()))


def _free_inodes(folder: str) -> int | None:
    """Return the number of free inodes; None if the file system does not count them."""
    status = os.statvfs(folder)
    return status.f_favail if status.f_files else None


def _read_memory() -> tuple[int, int]:
    """Return total and available bytes of memory, within the limit of the container."""
    entries = (line.split() for line in Path(_MEMINFO).read_text(encoding="ascii").splitlines())
    sizes = {entry[0]: int(entry[1]) * 1024 for entry in entries}
    limits = [Path(file).read_text(encoding="ascii").strip() for file in _CGROUP_LIMITS if Path(file).exists()]
    total = min([sizes["MemTotal:"], *(int(limit) for limit in limits if limit.isdigit())])
    return total, min(total, sizes["MemAvailable:"])


def _object_store_bytes(config: Experiment, total: int) -> int:
    """Return the size of a local object store; by default Ray does not exceed /dev/shm if that is large enough."""
    if config.cluster.object_store_mb is not None:
        return config.cluster.object_store_mb * 1024**2
    free = shutil.disk_usage(_SHM).free if Path(_SHM).is_dir() else 0
    shared_memory = max(_MAX_SLOW_STORE_BYTES, round(free * 0.95))
    return min(round(total * _STORE_FRACTION), _MAX_STORE_BYTES, shared_memory)


def _count_processes(config: Experiment) -> int:
    trials = config.tune.max_concurrent_trials * config.tune.workers_per_trial
    return max(config.train.parallel_runs * config.train.workers, trials) + _EXTRA_PROCESSES
