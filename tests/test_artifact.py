"""Digests, folders that appear whole or not at all, and stages that are skipped where nothing changed and redone where they are damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gmf_edge import artifact, scratch
from gmf_edge.artifact import cache_root, digest_of, run_stage, sha256_of
from gmf_edge.errors import EnvironmentProblem
from gmf_edge.scratch import new_folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GMF_EDGE_CACHE", str(tmp_path / "cache"))
    cache_root.cache_clear()
    yield tmp_path / "cache"
    cache_root.cache_clear()


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_digest_is_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_CHUNK_BYTES", 7)
    content = bytes(range(256))
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_digest_of_values_ignores_a_dicts_order_and_sees_everything_else() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1], None, {"a": {"b": 1}}]
    assert len({digest_of(values) for values in different}) == len(different)


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert content_of(tmp_path) == {"deep/er/out/a": b"1"}
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with new_folder(tmp_path / "out") as folder:
            (folder / name).write_text(name)
    assert content_of(tmp_path) == {"out/second": b"second"}


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_failure_leaves_nothing_behind_and_the_old_folder_as_it_was(
    tmp_path: Path, failure: BaseException, replaces: bool
) -> None:
    out = tmp_path / "made" / "out"
    if replaces:
        out.mkdir(parents=True)
        (out / "old").write_text("old")
    before = content_of(tmp_path)
    with pytest.raises((ValueError, KeyboardInterrupt, EnvironmentProblem)), new_folder(out) as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise failure
    assert content_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["made"] if replaces else [])


def test_a_full_disk_is_a_problem_of_the_environment_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*weights\.bin: No space left on device") as refusal:  # noqa: SIM117
        with new_folder(tmp_path / "out") as folder:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "weights.bin"))
    assert "free space" in refusal.value.remedy


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="a file, not a folder"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block ran")
    assert content_of(tmp_path) == {"file": b"a file"}


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "old").write_text("old")
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.parent.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(scratch, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(EnvironmentProblem, match="Permission denied"), new_folder(out) as folder:
        (folder / "new").write_text("new")
    assert content_of(tmp_path) == {"out/old": b"old"}
    assert os.listdir(tmp_path) == ["out"]


class Counted:
    """A stage's work that counts how often it is done."""

    def __init__(self, content: str = "made") -> None:
        self.content, self.runs = content, 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.runs += 1
        (folder / "result").write_text(self.content)
        return {"runs": self.runs}


def test_equal_inputs_are_not_done_twice(own_cache: Path) -> None:
    work = Counted()
    first, second = (run_stage("stage", {"digest": "1"}, work) for _ in range(2))
    assert (first.reused, second.reused, work.runs) == (False, True, 1)
    assert second.facts == {"runs": 1}
    assert (first.folder, first.key) == (second.folder, second.key)
    assert (second.folder / "result").read_text() == "made"
    assert second.folder.is_relative_to(own_cache)


def test_another_name_input_library_or_source_is_another_stage(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counted()
    keys = [run_stage("stage", {"digest": "1"}, work).key]
    keys.append(run_stage("stage", {"digest": "2"}, work).key)
    keys.append(run_stage("other", {"digest": "1"}, work).key)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "library_versions", lambda: {"torch": "0.1"})
        keys.append(run_stage("stage", {"digest": "1"}, work).key)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "source_digest", lambda: "another rule")
        keys.append(run_stage("stage", {"digest": "1"}, work).key)
    assert len(set(keys)) == work.runs == 5


@pytest.mark.parametrize("damage", ["changed", "missing", "no record", "broken record", "record of another kind"])
def test_a_damaged_stage_is_done_again(own_cache: Path, damage: str) -> None:
    work = Counted()
    folder = run_stage("stage", {}, work).folder
    if damage == "changed":
        (folder / "result").write_text("mad3")
    elif damage == "missing":
        (folder / "result").unlink()
    elif damage == "no record":
        (folder / "stage.json").unlink()
    else:
        (folder / "stage.json").write_text('{"facts"' if damage == "broken record" else json.dumps(["facts"]))
    again = run_stage("stage", {}, work)
    assert (again.reused, work.runs) == (False, 2)
    assert (again.folder / "result").read_text() == "made"


def test_a_stage_with_any_byte_flipped_is_never_used(own_cache: Path) -> None:
    work = Counted()
    folder = run_stage("stage", {}, work).folder
    for name in ("result", "stage.json"):
        content = (folder / name).read_bytes()
        for offset in range(len(content)):
            (folder / name).write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
            assert artifact._intact(folder) is None, f"byte {offset} of {name}"
        (folder / name).write_bytes(content)
    assert artifact._intact(folder) is not None


def test_litter_of_any_dead_stage_goes_with_the_next(own_cache: Path) -> None:
    (own_cache / "stages" / ".plain-123.abcdefgh.tmp" / "plain-123").mkdir(parents=True)
    run_stage("stage", {}, Counted())
    assert [path.name.split("-")[0] for path in (own_cache / "stages").iterdir()] == ["stage"]


def test_a_stage_that_fails_leaves_no_trace(own_cache: Path) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage("stage", {}, fail)
    assert content_of(own_cache) == {}
    work = Counted()
    assert not run_stage("stage", {}, work).reused


def test_two_runs_of_one_stage_at_once_do_not_pull_it_from_under_each_other(own_cache: Path) -> None:
    both_made = threading.Barrier(2, timeout=20)
    found: list[tuple[str, int]] = []

    def one_run() -> None:
        def make(folder: Path) -> Mapping[str, Any]:
            (folder / "result").write_text("made")
            both_made.wait()
            return {}

        stage = run_stage("stage", {}, make)
        # an inode that stays the same: the folder that the first one got was not replaced by the second's
        found.append(((stage.folder / "result").read_text(), (stage.folder / "result").stat().st_ino))
        both_made.wait()
        found.append(((stage.folder / "result").read_text(), (stage.folder / "result").stat().st_ino))

    threads = [threading.Thread(target=one_run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [path.name for path in (own_cache / "stages").iterdir() if path.name.startswith(".")] == []


def test_the_oldest_stages_go_when_the_cache_is_full(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "CACHE_MIB", 1)
    folders = []
    for age, number in ((30, 1), (20, 2), (10, 3)):
        folders.append(run_stage("stage", {"number": number}, Counted("x" * 400_000)).folder)
        os.utime(folders[-1], (1e9 - age, 1e9 - age))
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_a_cache_that_was_named_and_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GMF_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    cache_root.cache_clear()
    try:
        with pytest.raises(EnvironmentProblem, match="GMF_EDGE_CACHE"):
            cache_root()
    finally:
        cache_root.cache_clear()


def test_a_home_that_cannot_be_written_gets_a_cache_for_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    script = "from gmf_edge.artifact import cache_root; root = cache_root(); print(root.is_dir(), root)"
    environment = {name: value for name, value in os.environ.items() if name not in ("GMF_EDGE_CACHE", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    there, place = done.stdout.split(maxsplit=1)
    assert there == "True"
    assert Path(place.strip()).is_relative_to(tmp_path / "tmp")
    assert list((tmp_path / "tmp").iterdir()) == [], "the temporary cache outlived its process"


def test_the_cache_follows_the_usual_variables(tmp_path: Path) -> None:
    script = "from gmf_edge.artifact import cache_root; print(cache_root())"
    environment = {name: value for name, value in os.environ.items() if name != "GMF_EDGE_CACHE"} | {
        "XDG_CACHE_HOME": str(tmp_path)
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "gmf-edge")


def test_this_test_run_has_a_cache_of_its_own() -> None:
    assert str(cache_root()) == os.environ["GMF_EDGE_CACHE"]
    assert not cache_root().is_relative_to(Path.home() / ".cache")
