"""The layers: imports point only down, torch and Triton stay in their rooms, the device half needs neither torch nor onnx."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gmf_edge

PACKAGE = Path(gmf_edge.__file__).parent
REPOSITORY = PACKAGE.parent

# bottom first. engines/protocol.py is what the rest of the device half may know of backends, so it lies below the rooms
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("ops", "image", "sizes", "scratch"),
    ("spec", "artifact", "cpu", "weights", "imageset"),
    ("engines.protocol",),
    ("model", "rewrite", "parsers", "precision", "kernels", "engines", "bundle"),
    ("verify", "bench"),
    ("report",),
    ("prepare", "deploy", "package"),
    ("pipeline",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))
# the package's own face: it may name everything, lazily, and everything may read its version
FACE = PACKAGE / "__init__.py"


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__" or len(parts) == 1)


def room_of(module: str) -> str:
    """The room of a module below gmf_edge, such as "engines.choose" -> "engines"."""
    return module if module in HEIGHT else module.split(".")[0]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that the source names in an import, wherever it stands: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            # `from gmf_edge.kernels import layout` names a module, `from gmf_edge.spec import Gate` does not
            for alias in node.names:
                inside = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                if inside.with_suffix(".py").is_file() or (inside / "__init__.py").is_file():
                    yield f"{node.module}.{alias.name}"


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, without the leading gmf_edge."""
    names = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
    return {name.removeprefix("gmf_edge.") for name in names if name.startswith("gmf_edge.")}


def importers(package: str) -> set[str]:
    return {
        dotted(path)
        for path in MODULES
        if any(name.split(".")[0] == package for name in imported_modules(ast.parse(path.read_text(encoding="utf-8"))))
    }


def test_every_module_has_its_place_in_the_layers() -> None:
    rooms = {room_of(dotted(path)) for path in MODULES if path != FACE}
    assert rooms <= set(HEIGHT), f"new rooms without a layer: {sorted(rooms - set(HEIGHT))}"
    assert {"errors", "spec", "engines.protocol", "model", "bundle", "verify", "deploy", "cli"} <= rooms


@pytest.mark.parametrize("path", [path for path in MODULES if path != FACE], ids=dotted)
def test_imports_point_only_down(path: Path) -> None:
    importer = dotted(path)
    wrong = sorted(
        name
        for name in own_imports(path)
        if HEIGHT[room_of(name)] >= HEIGHT[room_of(importer)] and room_of(name) != room_of(importer)
    )
    assert wrong == [], f"gmf_edge.{importer} imports {wrong}, which lies beside or above it"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from gmf_edge.cli import run", {"gmf_edge.cli"}),
        ("def f():\n    from gmf_edge.deploy import predict", {"gmf_edge.deploy"}),
        ("if TYPE_CHECKING:\n    import gmf_edge.prepare", {"gmf_edge.prepare"}),
        ("from gmf_edge.kernels import layout", {"gmf_edge.kernels", "gmf_edge.kernels.layout"}),
        ("from gmf_edge import cli", {"gmf_edge", "gmf_edge.cli"}),
    ],
)
def test_the_walk_sees_imports_wherever_they_stand(source: str, found: set[str]) -> None:
    assert set(imported_modules(ast.parse(source))) == found


def test_no_import_circle() -> None:
    """Not even one that lazy imports hide."""
    modules = {dotted(path) for path in MODULES}
    graph = {dotted(path): {name for name in own_imports(path) if name in modules} for path in MODULES if path != FACE}
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle


# a file is one subject, and fits into a reader's head
MOST_LINES = 450
LONGER: dict[str, str] = {}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_file_is_short_unless_there_is_a_reason(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    name = str(path.relative_to(PACKAGE))
    assert (lines > MOST_LINES) == (name in LONGER), f"{name} has {lines} lines, more than {MOST_LINES} need a reason in LONGER"


@pytest.mark.parametrize(("room", "first"), [("prepare", "export"), ("deploy", "deploy_bundle"), ("cli", "run")])
def test_the_first_file_of_a_room_is_its_flow_on_one_screen(room: str, first: str) -> None:
    path = PACKAGE / room / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert first in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    steps = {step.stem for step in path.parent.glob("*.py")} - {"__init__"}
    called = {name.split(".")[1] for name in own_imports(path) if name.startswith(f"{room}.")}
    mentioned = set(re.findall(r"[a-z_0-9]+", ast.get_docstring(tree) or ""))
    assert steps <= called | mentioned, f"not on the first screen: {sorted(steps - called - mentioned)}"


LISTED_ROOMS = (
    "bench", "engines", "engines/openvino", "engines/tensorrt", "model", "ops", "package", "parsers", "precision", "report", "rewrite",
    "verify",
)  # fmt: skip


@pytest.mark.parametrize("room", LISTED_ROOMS)
def test_a_room_that_lists_its_files_lists_all_of_them(room: str) -> None:
    listed = set(re.findall(r"[a-z_0-9]+", ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""))
    files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    assert files <= listed, f"not listed: {sorted(files - listed)}"


def test_the_page_names_every_room_and_no_other() -> None:
    page = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", page)
    rooms = {
        path.name if path.suffix else f"{path.name}/"
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or any(path.glob("*.py"))
    }
    assert rooms - {"__main__.py"} <= set(named), f"not on the page: {sorted(rooms - {'__main__.py'} - set(named))}"
    gone = [name for name in named if not any((folder / name).exists() for folder in (PACKAGE, REPOSITORY, *PACKAGE.iterdir()))]
    assert gone == [], f"on the page and not there: {gone}"


def test_torch_stays_in_the_model_room() -> None:
    assert {module.split(".")[0] for module in importers("torch")} == {"model"}


def test_triton_stays_in_the_kernels_room() -> None:
    assert {module.split(".")[0] for module in importers("triton")} == {"kernels"}


@pytest.mark.parametrize("package", ["onnx", "onnx_ir", "onnxscript"])
def test_onnx_stays_on_the_workstation(package: str) -> None:
    rooms = {module.split(".")[0] for module in importers(package)}
    assert rooms <= {"model", "rewrite", "parsers", "precision", "kernels", "ops", "prepare"}


def test_no_module_is_called_utils() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [dotted(path) for path in PACKAGE.rglob("*") if path.stem in vague and "__pycache__" not in path.parts] == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_and_its_public_names_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == [], f"without a docstring: {silent}"


def committed_files() -> list[Path]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def lines_with(pattern: str) -> list[str]:
    found = []
    for path in committed_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:120]}")
    return found


def test_no_committed_file_names_a_package_index() -> None:
    # a letter in brackets, so that this line does not find itself
    words = (
        "index[-_]url",
        "[f]ind-links",
        r"[p]ypi\.",
        "python[h]osted",
        "[a]rtifactory",
        "[d]evpi",
        r"https?://[^\s/]+/[s]imple\b",
    )
    assert lines_with("|".join(words)) == []


def test_no_committed_file_names_a_folder_of_one_machine() -> None:
    # "/home/me" is the example of tests that refuse absolute paths
    assert lines_with(r"(?<![\w.$}])/(?:home/(?!me\b)|root/|Users/|work/)\w") == []


DEVICE_MODULES = sorted(
    f"gmf_edge.{dotted(path)}"
    for path in MODULES
    if path != FACE and dotted(path).split(".")[0] not in ("model", "rewrite", "parsers", "precision", "kernels", "__main__")
)

BLOCKED = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
    sys.modules[name] = None
"""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + script, *arguments], capture_output=True, text=True, timeout=300)


def test_the_device_half_imports_without_torch_and_onnx() -> None:
    assert {"gmf_edge.deploy", "gmf_edge.cli", "gmf_edge.bundle", "gmf_edge.engines.choose", "gmf_edge.doctor"} <= set(
        DEVICE_MODULES
    )
    done = python(
        "import importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\nprint('imported')", *DEVICE_MODULES
    )
    assert done.stdout == "imported\n", done.stderr


def test_a_bundle_is_deployed_verified_and_used_without_torch_and_onnx(pico_export: Path, digits: Path, tmp_path: Path) -> None:
    picture = next((digits / "3").iterdir())
    script = """
from gmf_edge.cli import run
bundle, deployed, images, picture = sys.argv[1:]
print(run(["deploy", bundle, "--backend", "onnxruntime", "--eval-data", images, "--output", deployed, "-q"]))
print(run(["verify", deployed, "-q"]))
print(run(["predict", deployed, picture, "-q"]))
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "onnx", "onnx_ir") and sys.modules[name] is not None))
"""
    test_set = PACKAGE / "assets" / "pico-digits-test.zip"
    done = python(script, str(pico_export), str(tmp_path / "deployed"), str(test_set), str(picture))
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == ["0", "0", "0"], done.stdout + done.stderr
    assert sum(line.startswith("PASSED: ") for line in lines) == 2, done.stdout
    assert lines[-1] == "[]"
