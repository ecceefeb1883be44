"""What the processor or GPU can do, and the settings that follow from it: device, precision, allocator."""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindgap.errors import SettingError

Precision = Literal["fp32", "bf16"]

_SHORT = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
_CPUINFO = Path("/proc/cpuinfo")
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")
"""What the drivers of NVIDIA, of GPUs in WSL and of AMD put there."""
_NVIDIA = "0x10de"
"""Vendor of PCI devices; its driver may be loaded by the first program that computes."""
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_TOP_PAD = -4, -1, -2


@dataclass(frozen=True)
class Processor:
    """What was detected.

    Attributes:
        device: "cpu" or "cuda".
        name: Model name of the GPU or CPU.
        native_bf16: Whether bf16 arithmetic is done in hardware. Where it is not, bf16 convolutions are
            hundreds of times slower than fp32 ones, so it is never chosen.
        vector: CPU capability as torch names it, such as "AVX2" or "AVX512".
        threads: Threads to compute with: one for each core, or fewer where the environment asks for that.
    """

    device: Literal["cpu", "cuda"]
    name: str
    native_bf16: bool
    vector: str
    threads: int

    @property
    def kind(self) -> str:
        """The processor class figures are reported with."""
        if self.device == "cuda":
            return self.name
        return f"{self.vector}, {'native' if self.native_bf16 else 'no native'} bf16, {self.threads} threads"


def detect_processor(device: str = "auto") -> Processor:
    """Ask the machine; nothing is assumed from names.

    torch is asked where it is loaded, where there may be a GPU, or where the system does not tell; else the system is,
    for loading torch takes longer than a network in OpenVINO does.

    Args:
        device: "auto" takes a GPU if there is one.

    Raises:
        SettingError: A GPU is asked for and there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"device {device!r} is unknown: choose auto, cpu or cuda.")
    vector, cores = _vector(), _cores()
    on_cpu = device == "cpu" or (device == "auto" and not _may_have_gpu())
    if on_cpu and vector and cores and sys.modules.get("torch") is None:
        return Processor("cpu", _cpu_name(), _cpu_has_native_bf16(), vector, min(_threads_asked() or cores, cores))
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device cuda was asked for but torch sees no GPU: use --device cpu or auto.")
    vector, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    if device != "cpu" and torch.cuda.is_available():
        return Processor("cuda", torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(False), vector, threads)
    return Processor("cpu", _cpu_name(), _cpu_has_native_bf16(), vector, threads)


def choose_precision(asked: str, processor: Processor) -> Precision:
    """The precision to compute in.

    Args:
        asked: "auto", "fp32" or "bf16".
        processor: Where it will run.

    Raises:
        SettingError: bf16 is asked for on a processor without native bf16.
    """
    if asked == "fp32":
        return "fp32"
    if asked == "auto":
        return "bf16" if processor.native_bf16 else "fp32"
    if asked != "bf16":
        raise SettingError(f"precision {asked!r} is unknown: choose auto, fp32 or bf16.")
    if not processor.native_bf16:
        raise SettingError(
            f"precision bf16 was asked for, but {processor.name} has no native bf16 ({processor.vector}): its bf16 "
            "convolutions are hundreds of times slower than fp32. Use --precision auto or fp32."
        )
    return "bf16"


def calm_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP threads spin briefly, then sleep; read when torch is loaded, and a user's choice stays.

    By default they spin, and two programs that spin keep each other from the cores: beside another training a step
    takes many times longer. Threads that sleep at once pay for waking at every layer, a tenth of a step; some ten
    microseconds of spinning bridge the layers (``benchmarks/threads.py``).

    Args:
        environment: Of this process or of one that is about to begin.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="2000")


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system after every layer.

    Without this every large activation is faulted in again page by page: inference is 1.3-2 times and a
    training step 1.1-1.2 times slower. Call it before the first large array; memory then stays with the process.

    Returns:
        Whether the allocator was changed (glibc on Linux only).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    return all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))
    )


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB (0 where the system does not say)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return 0.0


def available_memory_gib(device: str) -> float:
    """Memory that is free now, in GiB: of the GPU ("cuda"), or of the machine within the limit of its container.

    Where the system does not say, infinite.
    """
    if device == "cuda":
        import torch

        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # held by this process, free to it
        return float(torch.cuda.mem_get_info()[0] + unused) / 2**30
    known = [_meminfo_gib(), _container_gib()]
    return min((gib for gib in known if gib is not None), default=float("inf"))


def cpu_count() -> int:
    """Processors this process may use (a container or scheduler may allow fewer than the machine has)."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *map(math.ceil, _quotas())]))


def _meminfo_gib() -> float | None:
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20
    return None


def _container_gib() -> float | None:
    """What the control groups of this process still allow (version 2, and 1); None without a limit.

    Copies of files that the system keeps in memory count as free: it gives them up when memory is asked for.
    """
    free = []
    for folder in _control_groups("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
        ):
            allowed, taken = _number(folder / limit), _number(folder / used)
            if allowed is not None and taken is not None and allowed < 2**60:
                lines = (line.partition(" ") for line in _text(folder / "memory.stat").splitlines())
                taken -= sum(int(value) for name, _, value in lines if name in cached)
                free.append(max(allowed - max(taken, 0), 0) / 2**30)
    return min(free, default=None)


def _quotas() -> list[float]:
    """Processors' worth of time that the control groups of this process allow, as `docker --cpus` sets it."""
    found = []
    for folder in _control_groups("cpu"):
        share, _, period = _text(folder / "cpu.max").partition(" ")
        if share.isdigit() and period.strip().isdigit():
            found.append(int(share) / int(period))
        quota, length = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and length and quota > 0:
            found.append(quota / length)
    return found


def _control_groups(kind: str) -> list[Path]:
    """Folders of the control groups this process is in, for one kind of limit, from the innermost outwards."""
    folders = []
    for line in _text(_OWN_GROUPS).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and kind not in controllers.split(","):
            continue
        root = _GROUPS / kind if controllers else _GROUPS
        inner = root / place.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return folders


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    for about in _cpus():
        if "model name" in about:
            return about["model name"]
    return platform.processor() or platform.machine()


def _cpu_has_native_bf16() -> bool:
    return bool(_flags() & {"avx512_bf16", "amx_bf16"})


def _vector() -> str:
    """What torch would call the CPU's capability; empty where that is not known without it."""
    flags = _flags()
    if "ATEN_CPU_CAPABILITY" in os.environ or "avx2" not in flags:
        return ""
    return "AVX512" if flags >= {"avx512f", "avx512dq", "avx512bw", "avx512vl"} else "AVX2"


def _cores() -> int:
    """Cores, each counted once however many threads it runs, among the CPUs of this process; 0 where not known."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = os.sched_getaffinity(0)
    found = [about for about in _cpus() if int(about.get("processor", -1)) in allowed]
    if len(found) < len(allowed) or any("core id" not in about for about in found):
        return 0
    cores = len({(about.get("physical id"), about["core id"]) for about in found})
    return min(cores, cpu_count()) if 2 * cores >= len(allowed) else 0  # else a hypervisor names them all alike


def _threads_asked() -> int:
    """What the environment asks libraries of numbers to take, in the order in which torch asks; 0 for nothing."""
    asked = (os.environ.get(name, "").split(",")[0] for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"))
    return next((int(value) for value in asked if value.isdigit()), 0)


def _may_have_gpu() -> bool:
    """Whether a GPU that torch could compute with, or its driver, shows itself; a torch for CPUs has none."""
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return False
    except importlib.metadata.PackageNotFoundError:
        pass
    if sys.platform != "linux" or any(Path(place).exists() for place in _DRIVERS):
        return True
    return any(_text(vendor).strip() == _NVIDIA for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"))


def _flags() -> set[str]:
    return set(next((about["flags"] for about in _cpus() if "flags" in about), "").split())


def _cpus() -> list[dict[str, str]]:
    """What the system says of each processor."""
    parts = (part.splitlines() for part in _text(_CPUINFO).split("\n\n"))
    pairs = ([line.partition(":") for line in lines] for lines in parts)
    return [{key.strip(): value.strip() for key, _, value in found} for found in pairs if found]


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the processor or of a GPU; libraries have no common one for it."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SHORT)
