import os
import subprocess
import sys

import pytest
import torch

from mindgap import processor
from mindgap.errors import SettingError
from mindgap.processor import (
    Processor,
    available_memory_gib,
    choose_precision,
    cpu_count,
    detect_processor,
    keep_freed_memory,
    peak_memory_gib,
)

OLD = Processor("cpu", "Some CPU", native_bf16=False, vector="AVX2", threads=2)
NEW = Processor("cpu", "Newer CPU", native_bf16=True, vector="AVX512", threads=8)


def test_bf16_is_refused_where_it_is_not_native():
    with pytest.raises(SettingError, match=r"Some CPU has no native bf16 \(AVX2\).*Use --precision auto or fp32"):
        choose_precision("bf16", OLD)
    assert choose_precision("bf16", NEW) == "bf16"


def test_auto_follows_the_processor():
    assert choose_precision("auto", OLD) == "fp32"
    assert choose_precision("auto", NEW) == "bf16"
    assert choose_precision("fp32", NEW) == choose_precision("fp32", OLD) == "fp32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingError, match="'fp8' is unknown"):
        choose_precision("fp8", NEW)


def test_the_kind_names_what_figures_depend_on():
    assert OLD.kind == "AVX2, no native bf16, 2 threads"
    assert NEW.kind == "AVX512, native bf16, 8 threads"
    assert Processor("cuda", "Some GPU", True, "AVX2", 2).kind == "Some GPU"


def test_detection():
    found = detect_processor("cpu")
    assert found.device == "cpu"
    assert found.name
    assert found.threads == torch.get_num_threads()
    with pytest.raises(SettingError, match="'tpu' is unknown: choose auto, cpu or cuda"):
        detect_processor("tpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is asked")
@pytest.mark.parametrize("threads", ["1", "64"])
def test_the_system_says_what_torch_would_say(threads):
    program = (
        "import sys\n"
        "from mindgap.processor import detect_processor\n"
        "before = detect_processor('cpu')\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "assert detect_processor('cpu') == before, before\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


_CPU = """processor\t: {number}
model name\t: Some CPU
flags\t\t: fpu {flags}
physical id\t: 0
core id\t\t: {core}

"""


def test_what_the_system_says_of_its_processors(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(processor, "cpu_count", lambda: 8)

    def told(flags, cores=(0, 0, 1)):
        text = "".join(_CPU.format(number=n, flags=flags, core=core) for n, core in enumerate(cores))
        (tmp_path / "cpuinfo").write_text(text)
        return processor._vector(), processor._cores(), processor._cpu_has_native_bf16()

    assert told("avx2") == ("AVX2", 2, False)
    assert told("avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16", (0, 1, 2)) == ("AVX512", 3, True)
    assert told("sse4_2", (0, 1)) == ("", 0, False), "torch is asked"
    assert processor._cpu_name() == "Some CPU"
    (tmp_path / "cpuinfo").unlink()
    assert (processor._vector(), processor._cores()) == ("", 0)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, 0), ({"OMP_NUM_THREADS": "3,2"}, 3), ({"MKL_NUM_THREADS": "4"}, 4), ({"OMP_NUM_THREADS": "all"}, 0)],
)
def test_threads_are_those_the_environment_asks_for(monkeypatch, environment, threads):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processor._threads_asked() == threads


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="torch sees no GPU: use --device cpu or auto"):
        detect_processor("cuda")
    assert detect_processor("auto").device == "cpu"


def test_keep_freed_memory_says_whether_it_did(monkeypatch):
    assert isinstance(keep_freed_memory(), bool)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_memory_and_processors_are_counted():
    assert peak_memory_gib() >= 0
    assert cpu_count() >= 1


@pytest.mark.parametrize(
    ("groups", "memory", "cpu"),
    [
        (
            "0::/system.slice/job_7/step_0\n",
            {"system.slice/job_7/memory.max": "4294967296", "system.slice/job_7/memory.current": "3221225472",
             "system.slice/job_7/memory.stat": "anon 1\ninactive_file 1073741824\nactive_file 1073741824\n",
             "system.slice/job_7/step_0/memory.max": "max", "system.slice/job_7/step_0/memory.current": "5"},
            {"system.slice/job_7/cpu.max": "150000 100000", "system.slice/job_7/step_0/cpu.max": "max 100000"},
        ),
        (
            "4:memory:/slurm/job_7\n2:cpu,cpuacct:/docker/x\n0::/\n",
            {"memory/slurm/memory.limit_in_bytes": "4294967296", "memory/slurm/memory.usage_in_bytes": "3221225472",
             "memory/slurm/memory.stat": "total_inactive_file 2147483648\n",
             "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"},
            {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
        ),
        ("0::/\n", {}, {}),
    ],
)  # fmt: skip
def test_limits_of_a_scheduler_count_wherever_they_are_set_and_cached_files_are_free(
    groups, memory, cpu, tmp_path, monkeypatch
):
    for name, text in (memory | cpu).items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(groups)
    monkeypatch.setattr(processor, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processor, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processor, "_meminfo_gib", lambda: 64.0)
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert available_memory_gib("cpu") == (3.0 if memory else 64.0)
    assert cpu_count() == (2 if cpu else 64)
