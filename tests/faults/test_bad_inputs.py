"""Nothing that a user can give makes a traceback, a wrong status, litter or harm: over a thousand bad inputs in seeded families.

A sample runs by default, all of them with `pytest -m slow tests/faults`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_bundles import bundle_files, copies, manifest_fields
from bad_checkpoints import checkpoints, pickles, states
from bad_pictures import archives, class_folders, pictures
from bad_requests import caches, labels, options, ranges, recipes
from fault_harness import SEED, Arena, BadInput, Family, Material, bad, sample

from gmf_edge import cli
from gmf_edge.bundle import open_bundle, seal

# how many of each there are at least, and how many of them the sample has
FAMILIES: dict[Family, tuple[int, int]] = {
    checkpoints: (150, 12),
    states: (100, 6),
    pickles: (80, 10),
    pictures: (110, 12),
    class_folders: (60, 5),
    archives: (80, 6),
    bundle_files: (200, 12),
    manifest_fields: (250, 15),
    options: (350, 30),
    ranges: (90, 8),
    recipes: (60, 10),
    labels: (20, 4),
    caches: (8, 3),
}
by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def cases_of(family: Family, material: Material) -> list[BadInput]:
    return list(family(material, random.Random(SEED)))


@by_family
def test_a_sample_of_bad_inputs_is_refused_well(family: Family, material: Material, arena: Arena) -> None:
    chosen = sample(cases_of(family, material), FAMILIES[family][1])
    assert [problem for case in chosen if (problem := arena.mishandled(case))] == []


@pytest.mark.slow
@by_family
def test_every_bad_input_is_refused_well(family: Family, material: Material, arena: Arena) -> None:
    cases = cases_of(family, material)
    assert len(cases) >= FAMILIES[family][0]
    mishandled = []
    for case in cases:
        problem = arena.mishandled(case)
        if problem:
            print(problem)
            mishandled.append(problem)
    print(f"{family.__name__}: {len(cases)} tried, {len(mishandled)} mishandled")
    assert mishandled == []


def test_there_are_at_least_800(material: Material) -> None:
    assert sum(least for least, _ in FAMILIES.values()) >= 800


def test_the_frame_sees_what_is_mishandled(material: Material, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(status: int, out: str, err: str) -> Callable[[list[str]], int]:
        def run(arguments: list[str]) -> int:
            print(out, end="")
            print(err, end="", file=sys.stderr)
            return status

        return run

    def leaves(arguments: list[str]) -> int:
        Path("litter").touch()
        return ends(1, "FAILED: x", "error: x\nwhat to do: y")(arguments)

    def raises(arguments: list[str]) -> int:
        raise ValueError("no")

    case = bad("a case", lambda here: ["verify"])
    for run, words in (
        (ends(0, "FAILED: x", "error: x\nwhat to do: y"), "status 0"),
        (ends(1, "FAILED: x", "error: x"), "0 of what to do"),
        (ends(1, "", "error: x\nwhat to do: y"), "no FAILED"),
        (ends(1, "FAILED: x", "Traceback\nerror: x\nwhat to do: y"), "a traceback"),
        (ends(1, "FAILED: x", "error: unexpected x\nwhat to do: y"), "a fault of ours"),
        (leaves, "changed beside"),
        (raises, "ValueError escaped"),
    ):
        monkeypatch.setattr(cli, "run", run)
        problem = arena.mishandled(case)
        assert problem is not None
        assert words in problem
    monkeypatch.setattr(cli, "run", ends(1, "FAILED: x", "error: x\nwhat to do: y"))
    assert arena.mishandled(case) is None


def test_a_consistent_lie_is_caught_by_the_proof(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copies(material.bundle, tmp_path)
    assert cli.run(["verify", str(folder), "-q"]) == 0
    weights = folder / "weights.bin"
    stored = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    # the signs of every third value: a file of the same size that only the numbers can tell from the right one
    stored[1::6] ^= 0x80
    weights.write_bytes(stored.tobytes())
    seal(folder, open_bundle(material.bundle).manifest)
    assert open_bundle(folder).manifest.files["weights.bin"] != open_bundle(material.bundle).manifest.files["weights.bin"]
    capsys.readouterr()
    assert cli.run(["verify", str(folder), "-q"]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: ")
