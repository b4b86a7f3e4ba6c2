"""Temporary folders: those of dead processes go, those of living ones stay, and nobody else's is touched."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gmf_edge import scratch
from gmf_edge.errors import EnvironmentProblem
from gmf_edge.scratch import new_folder, owned_folder, remove_litter, scratch_folder, write_atomically

DIES = """
import os, sys
from pathlib import Path
from gmf_edge.scratch import owned_folder
with owned_folder(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


@contextmanager
def living(place: Path, name: str) -> Iterator[Path]:
    """The folder of another process that lives for this block and dies at its end without cleaning up."""
    command = [sys.executable, "-c", DIES, str(place), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip())
        process.communicate("")


def test_the_folder_of_a_living_process_stays_and_of_a_dead_one_goes(tmp_path: Path) -> None:
    with living(tmp_path, "bundle") as theirs:
        with owned_folder(tmp_path, "bundle") as ours:
            assert ours != theirs
        assert not ours.exists()
        assert (theirs / "half").read_text() == "half"
    assert theirs.exists()
    with owned_folder(tmp_path, "bundle"):
        assert not theirs.exists()
    assert list(tmp_path.iterdir()) == []


def test_only_litter_of_the_same_name_and_the_right_form_goes(tmp_path: Path) -> None:
    kept = [".other.abcdefgh.tmp", ".bundle.short.tmp", "bundle.abcdefgh.tmp", ".bundle.abcdefgh.tmp.bak", ".bundle", ".tmp"]
    for name in (*kept, ".bundle.abcdefgh.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.ijklmnop.tmp").write_text("a file")
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / ".bundle.qrstuvwx.tmp").symlink_to(target)
    remove_litter(tmp_path, "bundle")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".bundle.ijklmnop.tmp", ".bundle.qrstuvwx.tmp", "target"])
    remove_litter(tmp_path)
    assert ".other.abcdefgh.tmp" not in os.listdir(tmp_path)
    remove_litter(tmp_path / "none")


def test_litter_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".bundle.abcdefgh.tmp").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    remove_litter(tmp_path)
    assert os.listdir(tmp_path) == [".bundle.abcdefgh.tmp"]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(scratch.fcntl, "flock", none)
    (tmp_path / ".bundle.abcdefgh.tmp").mkdir()
    with owned_folder(tmp_path, "bundle") as folder:
        assert folder.is_dir()
    assert os.listdir(tmp_path) == [".bundle.abcdefgh.tmp"]


def test_what_a_dead_process_had_moved_away_returns(tmp_path: Path) -> None:
    # between the two renames of a file system that cannot exchange
    litter = tmp_path / ".bundle.abcdefgh.tmp"
    (litter / "bundle").mkdir(parents=True)
    (litter / ".bundle.ijklmnop.old" / "bundle").mkdir(parents=True)
    (litter / ".bundle.ijklmnop.old" / "bundle" / "old").write_text("old")
    remove_litter(tmp_path, "bundle")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["bundle", "bundle/old"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_replacing_works_with_and_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(scratch, "_exchange", lambda one, other: False)
    for name in ("first", "second"):
        with new_folder(tmp_path / "out") as folder:
            (folder / name).write_text(name)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/second"]


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges folders on Linux alone")
def test_a_reader_never_finds_a_moment_without_the_folder(tmp_path: Path) -> None:
    out, missing, stop = tmp_path / "out", [], threading.Event()
    with new_folder(out) as folder:
        (folder / "file").write_text("0")

    def read() -> None:
        while not stop.is_set():
            if not out.exists():
                missing.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        with new_folder(out) as folder:
            (folder / "file").write_text(str(number))
    stop.set()
    reader.join()
    assert missing == []


def test_many_at_once_get_a_folder_each(tmp_path: Path) -> None:
    found: list[bool] = []

    def one() -> None:
        for _ in range(50):
            with owned_folder(tmp_path, "bundle") as folder:
                (folder / "file").write_text("mine")
                found.append((folder / "file").read_text() == "mine")

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 200
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_made_names_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(EnvironmentProblem, match="none") as refusal, scratch_folder():
        pytest.fail("the block ran")
    assert "TMPDIR" in refusal.value.remedy


def test_a_scratch_folder_hands_on_errors_of_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), scratch_folder():
        Path("/none/at/all").read_text()
    with pytest.raises(EnvironmentProblem, match="No space left"), scratch_folder() as folder:
        raise OSError(28, "No space left on device", str(folder / "x"))
    assert list(tmp_path.iterdir()) == []


def test_too_few_open_files_has_its_own_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> str:
        raise OSError(24, "Too many open files", str(tmp_path))

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", none)
    with pytest.raises(EnvironmentProblem, match="Too many open files") as refusal:
        write_atomically(tmp_path / "file", b"x")
    assert "ulimit" in refusal.value.remedy


def test_a_folder_goes_where_no_file_can_be_opened_any_more(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        with owned_folder(tmp_path, "x") as folder:
            (folder / "x" / "y").mkdir(parents=True)
            (folder / "x" / "y" / "file").write_text("content")
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
            with pytest.raises(OSError, match="Too many open files"):
                taken.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(65))
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(tmp_path.iterdir()) == []
