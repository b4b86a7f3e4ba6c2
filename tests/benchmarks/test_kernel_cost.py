"""The cost tables of plugins/README.md are those of the JSON files; counted, predicted and measured stay apart."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.kernels.layout import TILINGS
from gmf_edge.spec import ModelSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kernel_cost

ROOT = Path(__file__).parents[2]


def test_the_tables_in_the_readme_are_those_of_the_results(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "plugins" / "README.md").read_text())
    kernel_cost.put_between_marks(readme, kernel_cost.tables(kernel_cost.RESULTS))
    assert readme.read_text() == (ROOT / "plugins" / "README.md").read_text(), (
        "run benchmarks/kernel_cost.py tables --write plugins/README.md"
    )


def test_the_kernels_cost_what_the_text_says_of_them() -> None:
    before, after = (json.loads((kernel_cost.RESULTS / f"kernel-cost-{when}.json").read_text()) for when in ("before", "after"))
    variants = {row["variant"] for row in after["launches"]}
    assert {"small", "base"} <= variants
    widths = {width for name in variants for width in ModelSpec.of(name).segment_dims}
    uses = [(row["segment_dim"], row["kernel"], row["tiling"]) for row in after["kernels"] if row["arch"] == "sm_90"]
    assert sorted(uses) == sorted(itertools.product(widths, ("aggregate", "attend"), TILINGS))
    for row in after["kernels"]:
        assert row["spill_bytes"] == 0, row
        assert row["blocks_per_multiprocessor"] >= 1, row
        assert row["instructions_per_fma"] <= 2.0, row
        assert row["assumed_branches"] == 0, row

    def rows_of(costs: dict[str, Any], variant: str, batch: int) -> list[dict[str, Any]]:
        return [row for row in costs["launches"] if (row["variant"], row["device"], row["batch"]) == (variant, "H200", batch)]

    for old, new in zip(rows_of(before, "small", 1), rows_of(after, "small", 1), strict=True):
        assert max(new[chain] / old[chain] for chain in ("chain_l1", "chain_l2")) <= 0.5
        busy = min(launch["busy_multiprocessors"] for launch in new["launches"])
        # 49 tokens are four tiles
        assert busy >= (64 if new["height"] > 7 else 26)
    [old], [new] = (
        [row for row in costs["totals"] if row["variant"] == "base" and row["device"] == "H200" and row["batch"] == 64]
        for costs in (before, after)
    )
    assert new["thread_instructions"] / old["thread_instructions"] <= 0.5
    first, *_ = (
        new["instructions_per_token"] / old["instructions_per_token"]
        for old, new in zip(rows_of(before, "base", 64), rows_of(after, "base", 64), strict=True)
    )
    assert first <= 0.5


def test_counted_predicted_and_measured_come_in_that_order_and_measured_only_from_results(tmp_path: Path) -> None:
    before = json.loads((kernel_cost.RESULTS / "kernel-cost-before.json").read_text())
    kernel_cost.write_costs(before, tmp_path / "kernel-cost-before.json")
    assert json.loads((tmp_path / "kernel-cost-before.json").read_text()) == before
    text = kernel_cost.tables(tmp_path)
    assert text.index("### Counted") < text.index("### Predicted") < text.index("### Measured\n\nNothing")
    assert " after |" not in text

    kernel_cost.write_costs({**before, "commit": "later"}, tmp_path / "kernel-cost-after.json")
    times = {"kernels": {"warm_ms": 0.011, "cold_ms": 0.022}, "eager_contiguous": {"warm_ms": 0.110, "cold_ms": 0.110}}
    over = {
        "over_kernels_warm": {"kernels": 1.0, "eager_contiguous": 10.0},
        "over_kernels_cold": {"kernels": 1.0, "eager_contiguous": 5.0},
    }
    row = {"channels": 320, "height": 14, "width": 14, "batch": 1, "times": times, **over}
    (tmp_path / "kernels-x.json").write_text(json.dumps({"machine": {"device": "a GPU", "commit": "c"}, "rows": [row]}))
    text = kernel_cost.tables(tmp_path)
    assert "After: commit later." in text
    measured = text[text.index("### Measured") :]
    assert "| a GPU, c | C 320, 14 x 14, batch 1 | eager_contiguous | 0.1100 (10.00) | 0.1100 (5.00) |" in measured
    assert text.count("0.1100") == 2


def test_a_file_without_marks_and_a_folder_without_results_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("no marks")
    with pytest.raises(kernel_cost.KernelError, match="no place for the tables"):
        kernel_cost.put_between_marks(file, "x")
    assert file.read_text() == "no marks"
    with pytest.raises(kernel_cost.KernelError, match=r"no kernel-cost-before\.json"):
        kernel_cost.tables(tmp_path)
