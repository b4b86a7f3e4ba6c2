"""Whatever moment a command is killed or interrupted at: the old result or a whole new one, and the next run succeeds and cleans up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_harness import SEED
from workshop import CommandServer, Workshop, commands, contents, cpu_s, has_ended, require_whole, result_of

from gmf_edge import cli
from gmf_edge.artifact import cache_root
from gmf_edge.cli.signals import Interrupted

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor times from Linux's /proc")
# what may be missing from the cache when a command starts, so that it is made while the command dies; the export by PyTorch is long
STAGES = ("", "reference", "lowered", "fused", "ranges")


@pytest.fixture
def shop(server: CommandServer, pico_export: Path, tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, server, cache_root() / "stages")


@dataclass(frozen=True)
class Whole:
    """A run of a command that nothing disturbed: the processor time that it took, in seconds, and a copy of its result."""

    seconds: float
    result: Path


def undisturbed(shop: Workshop, bundle: Path) -> dict[str, Whole]:
    """One of each command."""
    found = {}
    for name, arguments in commands(bundle, shop.out).items():
        result = result_of(name, shop.out)
        if name == "deploy in place":
            shutil.copytree(bundle, result)
        pid = shop.start(*arguments)
        while not has_ended(pid):
            time.sleep(0.02)
        seconds = cpu_s(pid)
        assert shop.wait(pid) == 0, shop.log
        require_whole(result)
        found[name] = Whole(seconds, result.rename(shop.root / f"whole {name}"))
        _emptied(shop.out)
    return found


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def round_of(shop: Workshop, rng: random.Random, bundle: Path, wholes: dict[str, Whole], number: signal.Signals) -> tuple[str, int]:
    """Start a command over an old result or none, hurt it at a random moment, and hold what is there against what was."""
    verbs = commands(bundle, shop.out)
    name = rng.choice(sorted(verbs))
    result, old = result_of(name, shop.out), wholes[name].result
    if name == "deploy in place":
        shutil.copytree(bundle, result)
    elif rng.random() < 0.5:
        shutil.copytree(old, result) if old.is_dir() else shutil.copyfile(old, result)
    stage = rng.choice(STAGES)
    for folder in (shop.cache / "stages").glob(f"{stage}-*" if stage else ".none"):
        shutil.rmtree(folder)
    before = contents(result)
    pid = shop.start(*verbs[name])
    shop.hurt(pid, number, rng.uniform(0.0, 1.1 * wholes[name].seconds))
    status = shop.wait(pid)
    if contents(result) != before or status == 0:
        # the new one then, whole
        assert result.exists(), f"{name}: the old result is gone"
        require_whole(result)
    return name, status


@pytest.mark.slow
def test_kill_9_at_random_moments(shop: Workshop, pico_export: Path, pytestconfig: pytest.Config) -> None:
    rounds = int(pytestconfig.getoption("--kill-rounds"))
    rng = random.Random(SEED)
    wholes = undisturbed(shop, pico_export)
    killed, littered = 0, 0
    for number in range(1, rounds + 1):
        name, status = round_of(shop, rng, pico_export, wholes, signal.SIGKILL)
        killed += status == 128 + signal.SIGKILL
        littered += bool(shop.litter())
        # the next run of the same command
        assert shop.run(*commands(pico_export, shop.out)[name]) == 0, shop.log
        assert shop.litter() == []
        _emptied(shop.out)
        print(f"round {number}: {name}, status {status}")
    print(f"{rounds} rounds, {killed} killed before their end, {littered} of them left litter, all of it gone after the next run")
    assert killed > rounds / 3


@pytest.mark.slow
def test_signals_end_cleanly_with_their_status(shop: Workshop, pico_export: Path, pytestconfig: pytest.Config) -> None:
    rounds = int(pytestconfig.getoption("--kill-rounds"))
    rng = random.Random(SEED + 1)
    wholes = undisturbed(shop, pico_export)
    interrupted = 0
    for _ in range(rounds):
        number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        name, status = round_of(shop, rng, pico_export, wholes, number)
        assert status in (0, 128 + number), f"{name}: {shop.log}"
        assert "Traceback" not in shop.log
        assert "error: " not in shop.log
        assert shop.litter() == [], f"{name}, {number.name}"
        interrupted += status != 0
        _emptied(shop.out)
    print(f"{rounds} signals, {interrupted} before the end")
    assert interrupted > rounds / 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("lost", [None, RuntimeError("a library's own")])
def test_a_signal_ends_with_its_status_even_where_a_library_loses_it(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
    as_json: bool,
    lost: Exception | None,
) -> None:
    # as in a terminal: a test run in the background, or under nohup, inherits some of them ignored
    inherited = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    request.addfinalizer(lambda: [signal.signal(each, handler) for each, handler in inherited.items()])
    handlers = [signal.getsignal(each) for each in inherited]

    def interrupted(folder: Path) -> None:
        try:
            os.kill(os.getpid(), number)
        except Interrupted:
            if lost is not None:
                raise lost from None
            raise

    monkeypatch.setattr("gmf_edge.bundle.open_bundle", interrupted)
    assert cli.run(["inspect", str(tmp_path), *(["--json"] if as_json else [])]) == status
    printed = capsys.readouterr()
    assert number.name in (printed.out if as_json else printed.err)
    assert "Traceback" not in printed.err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_an_ignored_signal_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nohup gmf-edge build ...
    monkeypatch.setattr("gmf_edge.bundle.open_bundle", lambda folder: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.run(["inspect", str(tmp_path), "--json"]) == 1  # no bundle came of it, and no 129
    finally:
        signal.signal(signal.SIGHUP, before)
