"""A typed stub (tensorrt.pyi) for one version of the bindings, from its dump, so that mypy can hold code against it.

pybind11's signatures are nearly Python; what is not is translated: C++ names that were not yet bound (nvinfer1::TensorIOMode),
buffers, capsules, defaults that are objects. What cannot be read becomes Any, which checks less and never wrongly.
"""

from __future__ import annotations

import ast
import keyword
import re
from typing import Any

HEADER = """from typing import Any, Callable, ClassVar, Iterable, Sequence, SupportsFloat, SupportsInt, overload
import numpy
from collections.abc import Buffer

__version__: str
"""
# C++ classes whose Python name differs
RENAMED = {"IEngineInspector": "EngineInspector", "IParserError": "ParserError", "IBuilder": "Builder", "IRuntime": "Runtime"}


def _bound_name(found: re.Match[str]) -> str:
    """The Python class of a C++ name that pybind11 had not bound yet when it wrote the signature."""
    outer, inner = found[1], found[2]
    return f"{outer}.{inner}" if inner else RENAMED.get(outer, outer)


def python_type(text: str, classes: set[str]) -> str:
    """The stub's spelling of a pybind11 type, "Any" where it cannot be read."""
    text = text.strip()
    text = re.sub(r"tensorrt(?:_bindings)?\.tensorrt\.", "", text)
    text = re.sub(r"\b(?:nvinfer1|nvonnxparser)::(?:v_1_0::)?(\w+)(?:::(\w+))?", _bound_name, text)
    text = re.sub(r"\btyping_extensions\.(?:Buffer|CapsuleType)\b|\bcapsule\b|\bhandle\b", "Any", text)
    text = re.sub(r"\bbuffer\b", "Buffer", text)
    text = re.sub(r"\bobject\b", "Any", text)
    text = re.sub(r"\b(?:collections\.abc|typing)\.", "", text)
    text = re.sub(r"\bList\b", "list", text)
    text = re.sub(r"\bTuple\b", "tuple", text)
    text = re.sub(r"\bnumpy\.ndarray(?:\[.*\])?", "Any", text)
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return "Any"
    known = {"int", "float", "str", "bool", "bytes", "None", "list", "tuple", "dict", "Any", "Callable", "object", "Buffer"}
    known |= {"Iterable", "Sequence", "SupportsInt", "SupportsFloat"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) not in classes:
            return "Any"
        if isinstance(node, ast.Name) and node.id not in known and node.id not in classes:
            return "Any"
        if not isinstance(
            node,
            (
                ast.Expression,
                ast.Name,
                ast.Attribute,
                ast.Subscript,
                ast.Tuple,
                ast.List,
                ast.Load,
                ast.Constant,
                ast.BinOp,
                ast.BitOr,
            ),
        ):
            return "Any"
    return text


def parameters(signature: str) -> list[tuple[str, str, bool]] | None:
    """(name, pybind type, has a default) for each parameter without self; None where the signature cannot be read."""
    inside = signature[signature.index("(") + 1 :]
    depth, current, parts, end = 0, "", [], -1
    for position, char in enumerate(inside):
        # defaults may be objects: <DataType.FLOAT: 0>
        if char in "([{<":
            depth += 1
        elif char == ")" and depth == 0:
            end = position
            break
        elif char in ")]}" or (char == ">" and inside[position - 1] != "-"):
            depth -= 1
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    if end < 0:
        return None
    if current.strip():
        parts.append(current)
    found = []
    for part in parts:
        matched = re.fullmatch(r"\s*(\*{0,2}\w+)\s*(?::\s*(.+?))?\s*(=.*)?\s*", part, flags=re.DOTALL)
        if not matched or matched[1].startswith("*"):
            return None
        if matched[1] != "self":
            found.append((matched[1], matched[2] or "object", matched[3] is not None))
    return found


def returned(signature: str) -> str:
    """The text after the last arrow."""
    return signature.rpartition(" -> ")[2] if " -> " in signature else "object"


def _argument_type(text: str, classes: set[str]) -> str:
    spelled = python_type(text, classes)
    # what pybind11 accepts beyond the class itself
    return {"Dims": "Dims | Sequence[int]", "Permutation": "Permutation | Sequence[int]"}.get(spelled, spelled)


def _functions(name: str, signatures: list[str], classes: set[str], indent: str, method: bool) -> str:
    lines = []
    readable = [(parameters(signature), signature) for signature in signatures]
    if not signatures or any(found is None for found, _ in readable):
        return f"{indent}def {name}({'self, ' if method else ''}*args: Any, **kwargs: Any) -> Any: ...\n"
    for found, signature in readable:
        assert found is not None
        spelled, optional = [], False
        for number, (parameter, kind, has_default) in enumerate(found):
            optional = optional or has_default
            # a name that pybind11 made up, or one that Python reserves, can be given by position only
            word = f"arg{number}" if keyword.iskeyword(parameter) else parameter
            argument = _argument_type(kind, classes)
            spelled.append(
                f"{word}: {argument}{' | None = ...' if has_default and 'None' not in argument else ' = ...' if optional else ''}"
            )
        arguments = ", ".join((["self"] if method else []) + spelled)
        if len(signatures) > 1:
            lines.append(f"{indent}@overload\n")
        lines.append(f"{indent}def {name}({arguments}) -> {python_type(returned(signature), classes)}: ...\n")
    return "".join(lines)


def stub(described: dict[str, Any]) -> str:
    """The text of tensorrt.pyi for a dump."""
    classes = set(described["classes"])
    lines = [HEADER]
    top = [name for name in classes if "." not in name]
    for name in sorted(top):
        lines.append(_class(name, name, described, classes, ""))
    for name, signatures in described["functions"].items():
        lines.append(_functions(name, signatures, classes, "", method=False))
    for name, kind in described["constants"].items():
        lines.append(f"{name}: {kind if kind in classes else 'Any'}\n")
    return "".join(lines)


def _class(name: str, short: str, described: dict[str, Any], classes: set[str], indent: str) -> str:
    record = described["classes"][name]
    bases = [base for base in record["bases"][:1] if base in classes and base != short]
    lines = [f"{indent}class {short}({', '.join(bases)}):\n" if bases else f"{indent}class {short}:\n"]
    inner = indent + "    "
    for nested in sorted(classes):
        if nested.startswith(name + ".") and "." not in nested[len(name) + 1 :]:
            lines.append(_class(nested, nested.rpartition(".")[2], described, classes, inner))
    for member in record["members"] or ():
        lines.append(f"{inner}{member}: ClassVar[{name}]\n")
    if record["members"] is not None:
        lines.append(f"{inner}__members__: ClassVar[dict[str, {name}]]\n{inner}name: str\n{inner}value: int\n")
        lines.append(f"{inner}def __int__(self) -> int: ...\n{inner}def __hash__(self) -> int: ...\n")
    inherited = described["classes"][bases[0]] if bases else {"methods": {}, "properties": {}}
    # overriding what a base has is no concern of the code under test
    for method, signatures in record["methods"].items():
        if method in ("__enter__", "__exit__") or (method in inherited["methods"] and method != "__init__"):
            continue
        lines.append(_functions(method, signatures, classes, inner, method=True))
    for attribute, facts in record["properties"].items():
        if attribute in inherited["properties"] or (record["members"] is not None and attribute in ("name", "value")):
            continue
        kind = python_type(facts["type"], classes) if facts["type"] else "Any"
        lines.append(f"{inner}@property\n{inner}def {attribute}(self) -> {kind}: ...\n")
        if facts["writable"]:
            accepted = _argument_type(facts["type"] or "object", classes)
            lines.append(f"{inner}@{attribute}.setter\n{inner}def {attribute}(self, value: {accepted}) -> None: ...\n")
    if name == "Dims":
        for method in ("__getitem__(self, index: int) -> int", "__len__(self) -> int", "__iter__(self) -> Any"):
            lines.append(f"{inner}def {method}: ...\n")
    if name == "IHostMemory":
        lines.append(f"{inner}def __buffer__(self, flags: int) -> memoryview: ...\n")
    lines.append(f"{inner}...\n")
    return "".join(lines)
