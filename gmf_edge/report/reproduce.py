"""reproduce.sh: the commands that made a bundle, the versions that they ran with, and a check of what goes in and of what comes out.

Nothing of the user's machine is in it but names of files; where they lie is set in variables, and their digests are checked before
anything is built (report.reproduction).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from gmf_edge.bundle import Manifest
from gmf_edge.report.commands import ENGINE_FLAGS, EVAL_DATA, PLUGIN_LIBRARY, arguments_of, variable_of

# installed by the name of the package that is at work
_ENGINE_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}

_HEAD = """#!/usr/bin/env bash
# Makes this bundle again and says which files come out the same.
#
{facts}
#
# Before: install the versions that made it,
#   {install}
# and set the variables below, here or in the environment. Then: bash reproduce.sh
# It ends with status 0 where graphs and weights are the same to the byte. Timings, and engines that are built for one GPU, never are.
set -euo pipefail

PYTHON=${{PYTHON:-python}}
OUTPUT=${{OUTPUT:-reproduced}}
{variables}
HERE=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
if [ "$HERE" -ef "$OUTPUT" ]; then
  echo "OUTPUT is this bundle itself; set another folder" >&2
  exit 2
fi
check() {{ "$PYTHON" -m gmf_edge.report.reproduction "$@"; }}

check versions "$HERE"
{checks}
# status 3 says that accuracy is outside the gate; the bundle is written all the same
{commands}
check compare "$HERE" "$OUTPUT"
"""


def reproduce_script(manifest: Manifest, report: Mapping[str, Any] | None) -> str:
    """The text of reproduce.sh.

    Args:
        manifest: of the bundle, with its request.
        report: what report.json says, or None before deploy.
    """
    engine = (report or {}).get("request") or {"verb": None, "options": {}, "files": {}, "unspelled": {}, "evaluated": False}
    files = {**manifest.request["files"], **engine["files"]}
    if engine["evaluated"] and EVAL_DATA not in files and manifest.evaluation is not None:
        seed = manifest.request["options"].get("--seed", 0)
        files[EVAL_DATA] = {**manifest.evaluation, "seed": seed}
    return _HEAD.format(
        facts="\n".join(f"#   {_one_line(fact)}" for fact in _facts(manifest, report, engine)),
        install=install_command(manifest.versions, report),
        variables="\n".join(_variables(files)),
        checks="\n".join(_checks(files)),
        commands="\n".join(_commands(manifest, engine)),
    )


def commands_of(manifest: Manifest, report: Mapping[str, Any] | None) -> list[str]:
    """The command lines alone, for people: with the names of files where the script has variables."""
    engine = (report or {}).get("request") or {"verb": None, "options": {}, "files": {}, "evaluated": False}
    return [_shown(verb, arguments) for verb, arguments in _steps(manifest, engine)]


def install_command(versions: Mapping[str, str], report: Mapping[str, Any] | None) -> str:
    """One line of pip with the versions of the packages that made the bundle and its engine."""
    packages = {name: version for name, version in versions.items() if name != "gmf-edge"}
    if report is not None:
        package = _ENGINE_PACKAGES.get(report["backend"])
        if package is not None:
            packages[package] = str(report["engine"]["version"])
    # what stands after "+" names a build of the same version, which an index may not have
    pinned = [f"{name}=={version.split('+')[0]}" for name, version in sorted(packages.items())]
    own = f"gmf-edge[workstation]=={versions.get('gmf-edge', '')}"
    return shlex.join(["pip", "install", own, *pinned])


def _facts(manifest: Manifest, report: Mapping[str, Any] | None, engine: Mapping[str, Any]) -> Iterator[str]:
    model = manifest.model
    height, width = model.image_size
    yield f"{model.variant} {height}x{width}, {model.num_classes} classes, {manifest.precision.value}"
    yield manifest.weights.statement
    builds = [f"{name} {version}" for name, version in sorted(manifest.versions.items()) if "+" in version]
    if builds:
        yield f"builds: {', '.join(builds)}"
    if report is not None:
        found = report["engine"]
        yield f"deployed {report['written']} with {found['backend']} {found['version']} on {found['device']}, Python {report['python']}"
    for name, value in (*manifest.request["unspelled"].items(), *engine["unspelled"].items()):
        yield f"asked for from Python, the command line has no word for it: {name} = {value}"


def _one_line(text: str) -> str:
    """Names of files are anyone's: in a comment they must not begin another line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _variables(files: Mapping[str, Any]) -> Iterator[str]:
    for flag, entry in files.items():
        name = variable_of(flag)
        yield f'[ -n "${{{name}:-}}" ] || {name}={shlex.quote(_one_line(entry["name"]))}'


def _checks(files: Mapping[str, Any]) -> Iterator[str]:
    for flag, entry in files.items():
        name = variable_of(flag)
        if entry["sha256"] is None:
            continue
        if "images" in entry:
            yield f'check images {name} "${name}" {entry["images"]} {entry["seed"]} {shlex.quote(entry["sha256"])}'
        else:
            yield f'check file {name} "${name}" {shlex.quote(entry["sha256"])}'


def _steps(manifest: Manifest, engine: Mapping[str, Any]) -> Iterator[tuple[str, list[str | tuple[str, str]]]]:
    """(what to call, its arguments) in order."""
    made, verb = manifest.request, engine["verb"]
    if verb == "build":
        yield "build", [*arguments_of(made), *arguments_of(engine), ("--output", "OUTPUT")]
        return
    options = {flag: value for flag, value in made["options"].items() if flag not in ENGINE_FLAGS}
    yield "export", [*arguments_of({**made, "options": options}), ("--output", "OUTPUT")]
    if verb == "deploy":
        evaluation = [(EVAL_DATA, variable_of(EVAL_DATA))] if engine["evaluated"] else []
        yield 'deploy "$OUTPUT"', [*arguments_of(engine), *evaluation]


def _commands(manifest: Manifest, engine: Mapping[str, Any]) -> Iterator[str]:
    for call, arguments in _steps(manifest, engine):
        words = [f'"$PYTHON" -m gmf_edge {call}']
        for argument in arguments:
            if isinstance(argument, tuple):
                flag, variable = argument
                # trtexec's options take their value after "="
                words.append(f'{flag}{"=" if flag == PLUGIN_LIBRARY else " "}"${variable}"')
            elif argument.startswith("--"):
                words.append(shlex.quote(argument))
            else:
                words[-1] += f" {shlex.quote(argument)}"
        yield " \\\n  ".join(words) + " || [ $? -eq 3 ]"


def _shown(call: str, arguments: list[str | tuple[str, str]]) -> str:
    words = [f"gmf-edge {call}"]
    for argument in arguments:
        if isinstance(argument, tuple):
            words.append(f'{argument[0]}{"=" if argument[0] == PLUGIN_LIBRARY else " "}"${argument[1]}"')
        else:
            words.append(shlex.quote(argument))
    return " ".join(words)
