"""Print what a `tensorrt` module offers, as JSON: classes, enum members, methods, properties and pybind11 signatures.

Run in a subprocess by trt_bindings.dump, in a Python that fits the bindings, with the stub libraries on the loader's path.
It imports nothing but the standard library and `tensorrt` itself.
"""

import inspect
import json
import sys
from typing import Any


def signatures(name: str, doc: str) -> list[str]:
    """The signatures that pybind11 writes on top of a docstring: one, or one per numbered overload."""
    lines = doc.strip().splitlines()
    if not lines:
        return []
    if len(lines) > 1 and "Overloaded function." in lines[1]:
        return [line.split(". ", 1)[1] for line in lines if line[:1].isdigit() and f". {name}(" in line]
    return [lines[0]] if lines[0].startswith((name + "(", "(")) else []


def describe_class(cls: type) -> dict[str, Any]:
    """Own and inherited members of one class; a member that only `object` has is left out."""
    members = getattr(cls, "__members__", None)
    described: dict[str, Any] = {
        "bases": [base.__name__ for base in cls.__mro__[1:] if base.__module__.startswith("tensorrt")],
        "members": sorted(members) if isinstance(members, dict) else None,
        "methods": {},
        "properties": {},
        "values": {},
    }
    for name in dir(cls):
        if name in described["bases"] or (hasattr(object, name) and name != "__init__") or (members and name in members):
            continue
        # getattr_static finds a pybind11 property itself, where getattr would run its getter
        attribute = inspect.getattr_static(cls, name)
        if isinstance(attribute, property):
            getter = getattr(attribute.fget, "__doc__", None) or ""
            returns = getter.splitlines()[0].rpartition(" -> ")[2].strip() if " -> " in getter.split("\n", 1)[0] else ""
            described["properties"][name] = {"type": returns, "writable": attribute.fset is not None}
        elif isinstance(attribute, type):
            continue
        elif callable(getattr(cls, name, None)):
            described["methods"][name] = signatures(name, getattr(getattr(cls, name), "__doc__", None) or "")
        else:
            described["values"][name] = type(getattr(cls, name)).__name__
    return described


def walk(namespace: Any, prefix: str, into: dict[str, Any]) -> None:
    """Describe every class of the namespace, nested ones as Outer.Inner."""
    for name, value in sorted(vars(namespace).items()):
        if isinstance(value, type) and value.__module__.startswith("tensorrt") and not name.startswith("_"):
            into[prefix + name] = describe_class(value)
            if not prefix:
                walk(value, name + ".", into)


def main() -> None:
    import tensorrt

    classes: dict[str, Any] = {}
    walk(tensorrt, "", classes)
    functions, constants = {}, {}
    for name, value in sorted(vars(tensorrt).items()):
        if name.startswith("_") or isinstance(value, type) or inspect.ismodule(value):
            continue
        if callable(value) and not isinstance(value, type):
            functions[name] = signatures(name, getattr(value, "__doc__", None) or "")
            if inspect.isfunction(value):
                functions[name] = [f"{name}({', '.join(inspect.signature(value).parameters)}) -> Any"]
        else:
            constants[name] = type(value).__name__
    json.dump(
        {"version": tensorrt.__version__, "classes": classes, "functions": functions, "constants": constants}, sys.stdout, indent=1
    )


if __name__ == "__main__":
    main()
