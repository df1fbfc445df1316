"""Cycles of a schedule, as the TPU compiler writes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCHEDULE = """
= control target key start
LB: loop body
= control target key end
     0   :  { %s1 = smov 0 }
   0x1   :  { %s2 = smov 0 }
   0x2 LB: > { %s3 = sadd.s32 1, %s2 }
   0x3 LB: >> { %v1 = vld [vmem:[%s3] sm:$0xff] }
   0x4   : >> { %p7_p1 = scmp.ge.s32.totalorder %s4, 10  ;;  %v2 = vsel %vm1, %v1, 0 }
   0x5   : >> { %8 = sbr.rel (!%p7_p1) target = $region2 }
   0x6   : > { %p3_p0 = scmp.ge.s32.totalorder (%p7_p1), %s3, 4 /* loop exit test */ }
   0x7   : > { %9 = sbr.rel (!%p3_p0) target = $region1 }
   0x8   :  { %10 = vsyncpa [#allocation1], 0 }
"""


@pytest.fixture(scope="module")
def bundles():
    path = Path(__file__).parents[1] / "scripts" / "bench" / "tpu_bundles.py"
    spec = importlib.util.spec_from_file_location("tpu_bundles", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bundles_count_as_often_as_the_loops_around_them_run(bundles):
    assert bundles.cycles(SCHEDULE) == 1 + 4 * (1 + 10 * 3 + 2) + 1


def test_a_loop_without_a_constant_length_is_refused(bundles):
    with pytest.raises(ValueError, match="a loop of unknown length"):
        bundles.cycles(SCHEDULE.replace("scmp.ge.s32.totalorder %s4, 10", "scmp.ge.s32.totalorder %s4, %s5"))


def test_equal_code_has_one_schedule(bundles, tmp_path):
    groups = [
        *("key:sort.1", "ordinal:3", "equivalent_hlos[size=2]:", "  sort.1", "  sort.2"),
        *("key:add", "ordinal:4", "equivalent_hlos[size=1]:", "  add"),
    ]
    (tmp_path / "17-TLP-00-deduplication-map.txt").write_text("\n".join(groups))
    (tmp_path / "17-sort.1-01-final_bundles.txt").write_text(SCHEDULE)
    (tmp_path / "17-sort.1-00-schedule-analysis_final_bundles.txt").write_text("")
    assert bundles.schedule_cycles(tmp_path, "sort.2") == bundles.cycles(SCHEDULE)
    with pytest.raises(ValueError, match="sort.3: no schedule"):
        bundles.schedule_cycles(tmp_path, "sort.3")
