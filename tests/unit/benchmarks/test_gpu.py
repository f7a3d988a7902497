"""benchmarks/gpu.py, with tiny nets on the CPU."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from schemas.bucket import Bucket
from tests.support.command import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The script; tiny nets are fastest with one thread, and nothing is compiled."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gpu")
    torch.set_num_threads(threads)


def results(folder: Path) -> dict:
    return json.loads((folder / "gpu.json").read_text())["cases"]


@pytest.mark.slow
def test_every_case_has_a_result_and_a_row_in_the_table(gpu, tmp_path):
    gpu.main(["--tiny", "--out", str(tmp_path)])
    cases = gpu.cases(gpu.Bench(gpu.TINY, CPU))
    rows = results(tmp_path)
    assert list(rows) == [case.name for case in cases]
    table = (tmp_path / "gpu.md").read_text().splitlines()
    for case in cases:
        row = rows[case.name]
        assert row["status"] == "done", case.name
        assert row["seconds"] > 0 and row["tflop"] > 0
        assert ("share_of_matrix_rate" in row) == (case.compared and case is not cases[0])
        assert ("speed" in row) == (case.against is not None)
        assert sum(line.startswith(f"| {case.name} | ") for line in table) == 1


def test_without_time_every_case_is_skipped_for_a_reason(gpu, tmp_path):
    gpu.main(["--tiny", "--minutes", "0", "--out", str(tmp_path)])
    for row in results(tmp_path).values():
        assert row["status"] == "skipped"
        assert "0 s were left" in row["remark"]
    assert (tmp_path / "gpu.md").read_text().count("| skipped; takes about") == len(
        results(tmp_path)
    )


def test_a_case_out_of_memory_is_tried_smaller_and_stops_no_other(gpu, tmp_path):
    def build(limit):
        def work(device, batch):
            if batch > limit and device.type != "meta":
                raise torch.OutOfMemoryError("no room\nfor details")
            return lambda: torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)

        return work

    cases = [
        gpu.Case("rate", 1, build(4)),
        gpu.Case("smaller", 1, build(2), (4, 2, 1)),
        gpu.Case("never", 1, build(0), (2, 1)),
        gpu.Case("next", 1, build(4)),
    ]
    gpu.run(cases, gpu.Bench(gpu.TINY, CPU), float("inf"), tmp_path)
    rows = results(tmp_path)
    assert [row["status"] for row in rows.values()] == ["done", "done", "out of memory", "done"]
    assert rows["smaller"]["batch"] == 2
    assert rows["smaller"]["out_of_memory"] == {"4": "no room"}
    table = (tmp_path / "gpu.md").read_text()
    assert "out of memory; out of memory at batch 2; out of memory at batch 1 |" in table


@pytest.mark.parametrize("schedule", ["ours", "alternating"])
def test_flops_counted_on_the_meta_device_are_those_of_the_real_update(gpu, schedule):
    bench = gpu.Bench(gpu.TINY, CPU)
    setting = gpu.Setting(gpu.SD35, Bucket(64, 48), schedule=schedule)
    case = gpu.Case("update", 1, lambda device, batch: bench.update(setting, device, batch))
    work = bench.update(setting, CPU, 2)
    with FlopCounterMode(display=False) as counter:
        work()
    assert 2 * bench.count(case) == counter.get_total_flops()
