"""README and docs/ are true: their commands run, their options, files and messages exist, and the site needs no network."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from gmf_edge.cli import app
from gmf_edge.engines.tensorrt.options import options_from_trtexec

ROOT = Path(__file__).parents[1]
# the README first: the others go on in the folder that its commands leave
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# what runs nowhere but on its device says so in its first line
NEEDS = "# needs "
# of other programs
FOREIGN_OPTIONS = {
    "--gpus",
    "--cpuset-cpus",
    "--cpus",
    "--loadEngine",
    "--staticPlugins",
    "--system-site-packages",
    "--no-isolation",
}
BARE_FLAG = re.compile(r"(?<![\w-])(--[A-Za-z][\w-]*)")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def is_run(self) -> bool:
        return self.language in ("bash", "python") and not self.text.startswith(NEEDS)


def text_of(page: str) -> str:
    """Without what readers do not see."""
    return re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


BLOCKS = [
    Block(page, *found) for page in PAGES for found in re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
]


def run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # the package is the installed one: the copied folder must not hide it
    environment = {**os.environ, "PATH": path, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands_of(text: str) -> list[str]:
    """Lines of a block of commands, without their comments."""
    return [command for line in text.splitlines() if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


README_COMMANDS = {
    command for block in BLOCKS if block.page == "README.md" and block.language == "bash" for command in commands_of(block.text)
}


def run_blocks(page: str, folder: Path, having: str = "") -> str:
    """What the page's blocks that are meant to be run print; a command that the README has too has been run in this folder."""
    printed = ""
    for block in BLOCKS:
        if block.page != page or not block.is_run or having not in block.text:
            continue
        if block.language == "bash":
            commands = [each for each in commands_of(block.text) if page == "README.md" or each not in README_COMMANDS]
            printed += run(["bash", "-euo", "pipefail", "-c", "\n".join(commands)], folder)
        else:
            printed += run([sys.executable, "-c", block.text], folder)
    return printed


@pytest.fixture
def workplace(pico_export: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder that holds what the pages speak of, after the README's commands; what they printed is in printed.txt. Copy it.

    pico_export has been made before, and so PyTorch's export is in the cache.
    """

    def make(folder: Path) -> None:
        half_made = folder.with_suffix(".tmp")
        shutil.copytree(ROOT / "gmf_edge" / "assets", half_made / "gmf_edge" / "assets")
        (half_made / "printed.txt").write_text(run_blocks("README.md", half_made), encoding="utf-8")
        half_made.rename(folder)

    return made_once("readme", make)


# what is meant to be run


def test_the_readmes_commands_run(workplace: Path) -> None:
    out = (workplace / "printed.txt").read_text(encoding="utf-8")
    assert out.count("PASSED: ") == 3  # build, inspect, verify
    assert "100.00 %  3" in out or re.search(r"9\d\.\d\d %  3", out)


# these build a second time: minutes
SLOW_PAGES = ("docs/api.md", "docs/int8.md")
PAGES_THAT_RUN = sorted({block.page for block in BLOCKS if block.is_run} - {"README.md"})


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW_PAGES)) for page in PAGES_THAT_RUN])
def test_the_commands_and_programs_of_a_page_run(workplace: Path, tmp_path: Path, page: str) -> None:
    folder = shutil.copytree(workplace, tmp_path / "workplace")
    out = run_blocks(page, folder)
    assert "FAILED" not in out
    if page == "docs/api.md":
        assert out.startswith("True top-1 ")
        assert out.endswith("\n3\n")
    if page == "docs/get-started.md":
        assert len(list((folder / "out" / "captioned").rglob("*.png"))) == 360


def test_the_program_that_opens_an_engine_runs(workplace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workplace, tmp_path / "workplace")
    assert run_blocks("docs/api.md", folder, having="open_engine") == "3\n"


# what is not


def test_every_block_is_run_or_says_what_it_needs() -> None:
    assert len(BLOCKS) > 15
    for block in BLOCKS:
        assert block.language in ("bash", "console", "python", "text", "toml", "json"), block
        if block.language == "console":
            assert block.text.startswith(NEEDS), block
        if block.language == "text":
            assert not re.search(r"^\$? ?(gmf-edge|pip|python3?|make) ", block.text, re.MULTILINE), (
                f"a command in a text block: {block}"
            )


def test_programs_that_are_not_run_are_python_at_least() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text)


def options_by_verb() -> dict[str, set[str]]:
    command = typer.main.get_command(app)
    found: dict[str, set[str]] = {}

    def walk(node: object, name: str) -> None:
        for verb, child in getattr(node, "commands", {}).items():
            walk(child, f"{name} {verb}".strip())
        found[name] = {option for param in node.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}  # type: ignore[attr-defined]

    walk(command, "")
    return found


OPTIONS = options_by_verb()
TAKES_TRTEXEC = ("build", "deploy")


def is_trtexec_option(option: str) -> bool:
    try:
        options_from_trtexec([option])
    except Exception as error:
        # a flag named without its value is known all the same
        return "has no counterpart" not in str(error)
    return True


def command_lines() -> Iterator[tuple[str, str, list[str]]]:
    """(page, verb, options) of every gmf-edge command that is named anywhere."""
    for page in PAGES:
        for words in re.findall(r"gmf-edge ((?:[a-z]\w*)[^`\n#|]*)", text_of(page)):
            parts = words.split()
            verb = " ".join(parts[:2]) if " ".join(parts[:2]) in OPTIONS else parts[0]
            if verb in OPTIONS:
                yield page, verb, [part for part in parts if part.startswith("--")]


def test_every_option_of_every_command_named_exists() -> None:
    named = list(command_lines())
    assert len(named) > 40
    for page, verb, options in named:
        for option in options:
            known = option.split("=")[0] in OPTIONS[verb] or (verb in TAKES_TRTEXEC and is_trtexec_option(option))
            assert known, f"{page}: gmf-edge {verb} has no {option}"


def test_every_first_word_of_a_command_line_in_a_block_is_a_verb() -> None:
    for block in BLOCKS:
        for verb in re.findall(r"^(?:\$ )?gmf-edge (\w+)", block.text, re.MULTILINE):
            assert verb in OPTIONS or f"{verb} compile" in OPTIONS, (block.page, verb)


def test_every_option_named_alone_exists() -> None:
    known = set().union(*OPTIONS.values()) | FOREIGN_OPTIONS
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`\n]+)`", prose):
            if code.startswith(("benchmarks/", "python benchmarks/", "pip ", "docker ", "GMF_EDGE_", "TRT_HOME=")):
                continue
            for option in BARE_FLAG.findall(code):
                assert option in known or is_trtexec_option(option) or is_option_of_a_script(option), f"{page}: {option}"


def is_option_of_a_script(option: str) -> bool:
    """Of a benchmark, or of the tests."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "conftest.py"]
    return any(f'"{option}"' in path.read_text(encoding="utf-8") for path in scripts)


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", text_of(page), re.MULTILINE)}
    words = {word for pair in named for word in pair if word}
    assert {"build", "test", "check", "docs", "wheel", "plugin"} <= words
    assert words <= targets


def test_every_file_named_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:benchmarks|calibration|plugins|gmf_edge|tests|docs)/[\w./-]+)`", text_of(page)):
            assert (ROOT / name).exists(), (page, name)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page)):
            assert ((ROOT / page).parent / target).exists(), (page, target)


def test_every_verb_has_a_row_and_every_row_a_verb() -> None:
    table = text_of("docs/commands.md").split("# Commands")[1].split("`gmf-edge VERB --help`")[0]
    rows = set(re.findall(r"^\| `([a-z]+(?: compile)?)", table, re.MULTILINE))
    assert rows == {verb for verb in OPTIONS if verb not in ("", "kernels")}


def test_every_message_of_the_troubleshooting_page_is_one_of_the_programs() -> None:
    written = "\n".join(
        node.value
        for path in (ROOT / "gmf_edge").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    messages = re.findall(r"^\| `([^`]+)` \|", text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 40
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ();:") in written, f"{message!r}: no message has {part!r}"


# the site


@pytest.fixture(scope="session")
def site(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The documentation, built as `make docs` does."""
    pytest.importorskip("mkdocs")

    def make(folder: Path) -> None:
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("site", make)


def test_the_site_has_every_page_and_needs_no_network_to_be_read(site: Path) -> None:
    for page in PAGES[1:]:
        html = (site / f"{Path(page).stem}.html").read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?([^\s\">]+)", html)
        fetched += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preload|preconnect|icon)\"?[^>]+href=\"?([^\s\">]+)", html)
        fetched += re.findall(r"<link[^>]+href=\"?([^\s\">]+)[^>]+rel=\"?(?:stylesheet|preload|preconnect|icon)", html)
        assert len(fetched) > 2
        assert [address for address in fetched if re.match(r"(https?:)?//", address)] == [], page
        for address in fetched:
            assert (site / address.split("?")[0]).exists(), (page, address)


def test_the_python_api_page_has_every_public_name_with_its_text(site: Path) -> None:
    import gmf_edge

    html = (site / "api.html").read_text(encoding="utf-8")
    for name in set(gmf_edge.__all__) - {"__version__"}:
        assert re.search(rf'id="?gmf_edge\.[\w.]*\b{name}\b', html), name


def test_the_readme_stays_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 120
