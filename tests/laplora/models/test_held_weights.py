"""Whether 4-bit weights are expanded at load: by what is requested, the device, and the memory that is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laplora.models import held_weights
from laplora.models.held_weights import MARGIN_BYTES, available_memory_bytes, decide, non_finite

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def group_v2(limit: object, used: int, active: int = 0, inactive: int = 0) -> dict[str, str]:
    stat = f"anon 5\nfile 7\nactive_file {active}\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def group_v1(limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    stat = f"active_file 1\ninactive_file 2\ntotal_active_file 0\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "groups", "expected"),
    [
        ("0::/", {}, 8 * GIB),
        ("0::/a/b", {"a/b": group_v2("max", GIB), "a": group_v2(5 * GIB, GIB)}, 4 * GIB),
        ("0::/a", {"a": group_v2(3 * GIB, 3 * GIB, active=GIB, inactive=GIB)}, 2 * GIB),
        ("0::/a", {"a": group_v2(GIB, 2 * GIB)}, 0),
        ("0::/a", {"a": group_v2(20 * GIB, GIB)}, 8 * GIB),
        ("0::/the/hosts/path", {".": group_v2(2 * GIB, GIB)}, GIB),
        ("0::/a", {"unified/a": group_v2(2 * GIB, GIB)}, GIB),
        ("4:memory:/a\n0::/", {"memory/a": group_v1(3 * GIB, 2 * GIB, inactive=GIB)}, 2 * GIB),
        ("3:cpu:/b\n4:cpu,memory:/a", {"memory/a": group_v1(UNLIMITED_V1, GIB), "memory": group_v1(2 * GIB, GIB)}, GIB),
        ("0::/a", {"a": {"memory.max": "not a number", "memory.current": "1"}}, 8 * GIB),
    ],
)
def test_the_least_that_the_system_and_every_group_leave(
    cgroup: str, groups: dict[str, dict[str, str]], expected: int, tmp_path: Path
) -> None:
    meminfo = f"MemFree: 1 kB\nMemAvailable:  {8 * 2**20} kB\n"
    write(tmp_path / "proc", {"self/cgroup": cgroup + "\n", "meminfo": meminfo})
    for path, files in groups.items():
        write(tmp_path / "cgroup" / path, files)
    assert available_memory_bytes(tmp_path / "proc", tmp_path / "cgroup") == expected
    assert available_memory_bytes(tmp_path, tmp_path) is None  # no one tells


@pytest.mark.parametrize(
    ("available", "held"),
    [(None, "expanded"), (0, "packed"), (4 * GIB + MARGIN_BYTES, "packed"), (5 * GIB + MARGIN_BYTES, "expanded")],
)
def test_a_cpu_expands_where_memory_allows(available: int | None, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_weights, "available_memory_bytes", lambda: available)
    decided = decide(4 * GIB, torch.device("cpu"), None)
    assert decided.held == held
    assert ("unknown" in decided.reason) == (available is None)
    if available is not None:
        assert f"4.00 GiB and a margin, 5.50 GiB in all; available are {available / GIB:.2f} GiB" in decided.reason
    for device in ("cpu", "cuda"):  # what is requested is done
        requested = [decide(4 * GIB, torch.device(device), expand).held for expand in (True, False)]
        assert requested == ["expanded", "packed"]
    assert decide(1, torch.device("cuda"), None).held == "packed"


def test_codes_in_a_floating_format_are_no_numbers() -> None:
    """Of packed weights the scales are looked at."""
    nn = pytest.importorskip("bitsandbytes").nn
    linear = nn.Linear4bit(64, 64, bias=False, quant_type="nf4", quant_storage=torch.bfloat16)
    linear.weight.data.fill_(0.1)
    linear.to("cpu")
    assert linear.weight.dtype == torch.bfloat16
    linear.weight.data.view(torch.int16).fill_(-1)  # NaN, if it were a number
    assert non_finite(linear) is None
    linear.weight.quant_state.state2.absmax[0] = torch.nan
    assert non_finite(linear) == "weight"
