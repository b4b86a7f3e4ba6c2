"""Full disks, read-only places, little memory, few files, no home, a wrong clock, others at work: a result or an error, never half."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workshop import CommandServer, Workshop, commands, contents

from gmf_edge import cli
from gmf_edge.artifact import cache_root
from gmf_edge.bundle import open_bundle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux alone")]
NOBODY = 65534
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def shop(server: CommandServer, pico_export: Path) -> Iterator[Workshop]:
    # not below pytest's folder, into which other users may not look
    with tempfile.TemporaryDirectory(prefix="gmf-edge-tests-") as folder:
        os.chmod(folder, 0o755)
        yield Workshop(Path(folder), server, cache_root() / "stages")


def refused_well(shop: Workshop, status: int, *statuses: int) -> None:
    """The documented status, one line of what and one of what to do, no traceback, and no litter."""
    log = shop.log
    assert status in statuses, log
    if status:
        assert log.count("\nerror: ") + log.startswith("error: ") == 1, log
        assert log.count("\nwhat to do: ") == 1, log
        assert "unexpected" not in log, log
    assert "Traceback" not in log, log
    assert shop.litter() == [], log


@contextmanager
def mounted(folder: Path, size: int, *, read_only: bool = False) -> Iterator[None]:
    """A file system of so many bytes of its own in the folder's place, with the folder's content."""
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting needs the superuser: {done.stderr.decode().strip()}")
        try:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            if read_only:
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            yield
        finally:
            # a program that was killed may still hold it
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("place", ["out", "cache", "tmp"])
def test_a_disk_that_is_full(shop: Workshop, pico_export: Path, place: str) -> None:
    folder = {"out": shop.out, "cache": shop.cache, "tmp": shop.tmp}[place]
    for stage in ("reference", "lowered", "fused"):
        for found in (shop.cache / "stages").glob(f"{stage}-*"):
            shutil.rmtree(found)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) + 64 * KIB
    ended = []
    for free in (4 * KIB, 64 * KIB, 400 * KIB, 1 * MIB, 2 * MIB, 5 * MIB, 40 * MIB):
        with mounted(folder, used + free):
            before = contents(shop.out / "bundle")
            for name in ("export", "build"):
                status = shop.run(*commands(pico_export, shop.out)[name])
                refused_well(shop, status, 0, 4)
                ended.append(status)
                if status:
                    assert contents(shop.out / "bundle") == before
                else:
                    open_bundle(shop.out / "bundle")
                    before = contents(shop.out / "bundle")
    assert ended[0] == 4
    assert ended[-1] == 0


@pytest.mark.parametrize("place", ["out", "cache", "tmp"])
def test_a_read_only_place(shop: Workshop, pico_export: Path, place: str) -> None:
    folder = {"out": shop.out, "cache": shop.cache, "tmp": shop.tmp}[place]
    with mounted(folder, 200 * MIB, read_only=True):
        for name in ("export", "build", "deploy", "calibrate", "package"):
            status = shop.run(*commands(pico_export, shop.out)[name])
            # without $TMPDIR's folder Python takes /tmp; what deploys or packages for ONNX Runtime caches nothing
            needs_it = place == "out" or (place == "cache" and name not in ("deploy", "package"))
            refused_well(shop, status, 4 if needs_it else 0)


@pytest.mark.parametrize("size", [0, 100, 4 * KIB, 64 * KIB, 256 * KIB])
def test_a_limit_on_the_size_of_files(shop: Workshop, pico_export: Path, size: int) -> None:
    # the log is a file too: only what does not fit is refused
    for name in ("export", "deploy"):
        status = shop.run(*commands(pico_export, shop.out)[name], "-q", limits={"FSIZE": size})
        assert status in (1, 4), shop.log
        assert "Traceback" not in shop.log
        assert contents(shop.out / "bundle") == {}
        assert shop.litter() == []


@pytest.mark.parametrize("files", [3, 4, 5, 6, 8, 10, 12, 16, 24, 32])
def test_few_open_files(shop: Workshop, pico_export: Path, files: int) -> None:
    for name in ("export", "deploy"):
        status = shop.run(*commands(pico_export, shop.out)[name], limits={"NOFILE": files})
        refused_well(shop, status, 0, 1, 4)
        assert status == 0 or contents(shop.out / "bundle") == {}
        shutil.rmtree(shop.out / "bundle", ignore_errors=True)


@pytest.mark.parametrize("more", [0, 2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB, 128 * MIB, 256 * MIB])
def test_little_memory(shop: Workshop, pico_export: Path, more: int) -> None:
    shutil.copytree(pico_export, shop.out / "bundle")
    before = contents(shop.out / "bundle")
    for name in ("export", "deploy in place"):
        status = shop.run(*commands(pico_export, shop.out)[name], limits={"AS": more})
        # where not even a thread can be had, libraries end the process themselves
        assert status in (0, 1, 4, 134, 139), shop.log
        if status in (1, 4):
            assert "error: " in shop.log
            assert "unexpected" not in shop.log
            assert shop.litter() == []
        if status:
            assert contents(shop.out / "bundle") == before
        else:
            before = contents(shop.out / "bundle")
            open_bundle(shop.out / "bundle")
    # and with memory all is well again
    assert shop.run(*commands(pico_export, shop.out)["deploy in place"]) == 0, shop.log
    assert shop.litter() == []


@pytest.mark.parametrize("count", [2, 4])
def test_builds_at_once_on_one_output_and_one_cache(shop: Workshop, pico_export: Path, count: int) -> None:
    for stage in ("reference", "lowered", "fused"):
        for found in (shop.cache / "stages").glob(f"{stage}-*"):
            shutil.rmtree(found)
    children = [shop.start(*commands(pico_export, shop.out)["build"]) for _ in range(count)]
    assert [shop.wait(child) for child in children] == [0] * count, shop.log
    assert open_bundle(shop.out / "bundle").report is not None
    assert shop.litter() == []


def test_a_clock_that_goes_back(shop: Workshop, pico_export: Path) -> None:
    assert shop.run(*commands(pico_export, shop.out)["export"]) == 0, shop.log
    for path in (*shop.cache.rglob("*"), *shop.out.rglob("*")):
        os.utime(path, (4e9, 4e9))  # in the year 2096
    for name in ("export", "deploy in place"):
        assert shop.run(*commands(pico_export, shop.out)[name], clock=1e6) == 0, shop.log
    assert open_bundle(shop.out / "bundle").report is not None
    assert shop.litter() == []


def test_no_home(shop: Workshop, pico_export: Path) -> None:
    shutil.copytree(pico_export, shop.out / "bundle")
    bare = {"PATH": os.environ["PATH"], "TMPDIR": str(shop.tmp)}
    strangers: list[dict[str, int]] = [{}]
    # Python has to be where others may look
    if os.geteuid() == 0 and all(folder.stat().st_mode & 0o001 for folder in Path(os.__file__).resolve().parents):
        os.chmod(shop.tmp, 0o1777)
        os.chmod(shop.root, 0o1777)
        os.chmod(shop.out / "bundle", 0o755)
        strangers.append({"user": 54321})  # of whom the system knows no home
    for stranger in strangers:
        for verb in ("verify", "inspect", "doctor"):
            arguments = (verb,) if verb == "doctor" else (verb, shop.out / "bundle")
            assert shop.run(*arguments, environment=bare, **stranger) == 0, shop.log
            assert "Traceback" not in shop.log
        assert [path for path in shop.tmp.iterdir() if not path.name.startswith("torchinductor")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become somebody else")
def test_places_of_somebody_else(shop: Workshop, pico_export: Path) -> None:
    shutil.copytree(pico_export, shop.root / "bundle")
    for path in (shop.root / "bundle", *shop.cache.rglob("*"), shop.cache):
        path.chmod(0o755)
    os.chmod(shop.tmp, 0o1777)
    os.chmod(shop.root, 0o1777)
    for name in ("export", "deploy", "package"):
        status = shop.run(*commands(shop.root / "bundle", shop.out)[name], user=NOBODY)
        refused_well(shop, status, 4)
    assert list(shop.out.iterdir()) == []


def test_a_cache_with_a_flipped_byte_in_every_file_is_never_used(shop: Workshop, pico_export: Path) -> None:
    # all but PyTorch's export, whose repetition takes longest; tests/test_artifact.py flips every byte of a small stage
    for path in (shop.cache / "stages").glob("*/*"):
        if not path.parent.name.startswith("plain-"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    assert shop.run(*commands(pico_export, shop.out)["export"]) == 0, shop.log
    assert shop.log.count("unchanged, taken from the cache") == 1, shop.log
    assert contents(shop.out / "bundle") == contents(pico_export)


@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
def test_standard_output_that_takes_nothing(pico_export: Path, target: str) -> None:
    read, write = os.pipe()
    os.close(read)
    stdout = write if target == "closed pipe" else os.open(target, os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "gmf_edge", "inspect", str(pico_export), "--json"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(stdout)
    assert done.returncode in (1, 4)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert cli.run(["inspect", str(pico_export)]) == 0
