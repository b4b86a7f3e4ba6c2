"""Which parts of TensorRT's API a source file uses, held against the bindings of one version.

    Usage(source, dump(version), guards, siblings).problems  -> ["line 12: BuilderFlag has no member FP16", ...]

It walks the syntax tree and follows types as far as they are told: `import tensorrt as trt`, annotations (`builder: trt.Builder`,
also on self), what calls return by the bindings' signatures or by annotations in the file and its siblings, properties, elements of lists,
typing.cast. It checks every trt.X.Y, every attribute and method of an object whose class it knows, the keywords and number of
arguments of their calls, and the methods of classes derived from TensorRT's.

A guard is an attribute of that name in the test of an `if` (see TensorRTVersion): with its value for this version only the branch
that runs is followed, `and`, `or` and `not` included, and what comes after a branch that always leaves is dropped.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from trt_stubs import parameters, python_type, returned

# bookkeeping of Python itself, on any object
UNIVERSAL = {"__class__", "__name__", "__members__", "__doc__", "__init__"}


class Usage:
    """The uses of one file in one version.

    Attributes:
        found: names that were resolved, such as "BuilderFlag.TF32" or "IExecutionContext.execute_async_v3".
        problems: what this version lacks, with the line.
    """

    def __init__(self, source: str, described: Mapping[str, Any], guards: Mapping[str, bool], siblings: Sequence[str] = ()) -> None:
        self.classes: Mapping[str, Any] = described["classes"]
        self.functions: Mapping[str, list[str]] = described["functions"]
        self.constants: Mapping[str, str] = described["constants"]
        self.guards = guards
        self.found: set[str] = set()
        self.problems: list[str] = []
        tree = ast.parse(source)
        # what functions return, by name; methods too: within a file names are not reused with other types, and of the siblings' only
        # those count that all of them agree about
        self.returns = {**_agreed([found for text in siblings for found in _returns_of(text)]), **dict(_returns(tree))}
        self.attributes = self._annotated_attributes(tree)
        self._block(tree.body, {})

    # types are texts: a class of the bindings, "list[X]", "tuple[X, Y]", or "" for unknown

    def _annotated_attributes(self, tree: ast.AST) -> dict[str, str]:
        """self.x = x where x is an annotated parameter, or self.x: trt.X = ... ."""
        found: dict[str, str] = {}
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            parameters_here = {a.arg: self._annotation(a.annotation) for a in [*function.args.args, *function.args.kwonlyargs]}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and parameters_here.get(node.value.id):
                    for target in node.targets:
                        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                            found[target.attr] = parameters_here[node.value.id]
        return found

    def _annotation(self, node: ast.expr | None) -> str:
        """The type that an annotation names."""
        if node is None:
            return ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):  # X | None
            return self._annotation(node.left) or self._annotation(node.right)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("list", "tuple", "Sequence"):
            elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            kind = "tuple" if node.value.id == "tuple" else "list"
            return f"{kind}[{', '.join(self._annotation(element) or 'Any' for element in elements)}]"
        name = self._trt_name(node)
        return name if name in self.classes else ""

    def _trt_name(self, node: ast.expr) -> str:
        """ "A.B" of trt.A.B, else ""."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "trt" and parts else ""

    def _problem(self, node: ast.AST, text: str) -> None:
        message = f"line {getattr(node, 'lineno', 0)}: {text}"
        if message not in self.problems:
            self.problems.append(message)

    # statements

    def _block(self, body: Sequence[ast.stmt], env: dict[str, str]) -> bool:
        """Follow statements; True where they always leave the block."""
        return any(self._statement(statement, env) for statement in body)

    def _statement(self, node: ast.stmt, env: dict[str, str]) -> bool:
        if isinstance(node, ast.If):
            value = self._guard(node.test)
            self._expression(node.test, env)
            if value is True:
                return self._block(node.body, env)
            if value is False:
                return self._block(node.orelse, env)
            leaves = [self._block(node.body, env), self._block(node.orelse, env)]
            return all(leaves) and bool(node.orelse)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = dict(env)
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                if argument.annotation is not None:
                    self._check_annotation(argument.annotation)
                inner[argument.arg] = self._annotation(argument.annotation)
            if node.returns is not None:
                self._check_annotation(node.returns)
            self._block(node.body, inner)
            return False
        if isinstance(node, ast.ClassDef):
            self._class(node, env)
            return False
        if isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._expression(child, env)
            return True
        if isinstance(node, ast.AnnAssign):
            self._check_annotation(node.annotation)
            kind = self._annotation(node.annotation)
            told = self._expression(node.value, env) if node.value is not None else ""
            if isinstance(node.target, ast.Name):
                env[node.target.id] = kind or told
            return False
        if isinstance(node, ast.Assign):
            kind = self._expression(node.value, env)
            for target in node.targets:
                self._bind(target, kind, env)
            return False
        if isinstance(node, ast.For):
            self._bind(node.target, _element(self._expression(node.iter, env)), env)
            self._block(node.body, env)
            self._block(node.orelse, env)
            return False
        if isinstance(node, ast.With):
            for item in node.items:
                kind = self._expression(item.context_expr, env)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, kind, env)
            return self._block(node.body, env)
        if isinstance(node, ast.Try):
            self._block(node.body, env)
            for handler in node.handlers:
                self._block(handler.body, env)
            self._block(node.orelse, env)
            self._block(node.finalbody, env)
            return False
        if isinstance(node, ast.While):
            self._expression(node.test, env)
            self._block(node.body, env)
            return False
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._expression(child, env)
        return False

    def _class(self, node: ast.ClassDef, env: dict[str, str]) -> None:
        for base in node.bases:
            self._expression(base, env)
            name = self._trt_name(base)
            if name in self.classes:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        if method.name in self.classes[name]["methods"]:
                            self.found.add(f"{name}.{method.name}")
                        elif not method.name.startswith("_"):
                            self._problem(method, f"{name} never calls a method {method.name}")
        self._block(node.body, dict(env))

    def _check_annotation(self, node: ast.expr) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and self._trt_name(part):
                self._resolve(part, self._trt_name(part))

    def _bind(self, target: ast.expr, kind: str, env: dict[str, str]) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = kind
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = _elements(kind)
            for number, part in enumerate(target.elts):
                self._bind(part, parts[number] if number < len(parts) else "", env)
        elif isinstance(target, ast.Attribute):
            # writing: the attribute must exist and be writable
            owner = self._expression(target.value, env)
            if owner in self.classes and target.attr not in UNIVERSAL:
                facts = self.classes[owner]["properties"].get(target.attr)
                if facts is None:
                    self._problem(target, f"{owner} has no attribute {target.attr}")
                elif not facts["writable"]:
                    self._problem(target, f"{owner}.{target.attr} cannot be set")
                else:
                    self.found.add(f"{owner}.{target.attr}")
        else:
            self._expression(target, env)

    # guards

    def _guard(self, node: ast.expr) -> bool | None:
        """The value of a test in this version, None where it is not the version's alone."""
        if isinstance(node, ast.Attribute) and node.attr in self.guards:
            return self.guards[node.attr]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            value = self._guard(node.operand)
            return None if value is None else not value
        if isinstance(node, ast.BoolOp):
            values = [self._guard(value) for value in node.values]
            decisive = isinstance(node.op, ast.Or)
            if decisive in values:
                return decisive
            return None if None in values else not decisive
        return None

    # expressions

    def _expression(self, node: ast.expr, env: dict[str, str]) -> str:
        """Check an expression; its type."""
        if isinstance(node, ast.BoolOp):
            stop = isinstance(node.op, ast.Or)
            for value in node.values:
                self._expression(value, env)
                if self._guard(value) is stop:
                    break  # the rest is not evaluated
            return ""
        if isinstance(node, ast.IfExp):
            guard = self._guard(node.test)
            kinds = [self._expression(node.body, env)] if guard is not False else []
            kinds += [self._expression(node.orelse, env)] if guard is not True else []
            return kinds[0]
        if isinstance(node, ast.Name):
            return env.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self._attribute(node, env)
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.Subscript):
            kind = self._expression(node.value, env)
            self._expression(node.slice, env)
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int) and kind.startswith("tuple["):
                parts = _elements(kind)
                return parts[node.slice.value] if node.slice.value < len(parts) else ""
            return _element(kind)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            inner = dict(env)
            for generator in node.generators:
                self._bind(generator.target, _element(self._expression(generator.iter, inner)), inner)
                for condition in generator.ifs:
                    self._expression(condition, inner)
            if isinstance(node, ast.DictComp):
                self._expression(node.key, inner)
                self._expression(node.value, inner)
                return ""
            return f"list[{self._expression(node.elt, inner) or 'Any'}]"
        if isinstance(node, ast.Lambda):
            self._expression(node.body, dict(env))
            return ""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._expression(child, env)
            elif isinstance(child, ast.keyword):
                self._expression(child.value, env)
        return ""

    def _resolve(self, node: ast.expr, name: str) -> str:
        """Check trt.<name>; its type where it is a value."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            owner = ".".join(parts[:length])
            if owner not in self.classes:
                continue
            rest = parts[length:]
            record = self.classes[owner]
            if not rest:
                self.found.add(owner)
                return ""
            if rest[0] in (record["members"] or ()) or rest[0] in record["values"]:
                self.found.add(f"{owner}.{rest[0]}")
                return owner
            if rest[0] in record["methods"] or rest[0] in record["properties"] or rest[0] in UNIVERSAL:
                self.found.add(f"{owner}.{rest[0]}")
                return ""
            self._problem(node, f"{owner} has no member {rest[0]}")
            return ""
        if parts[0] in self.functions or parts[0] in self.constants or parts[0].startswith("__"):
            self.found.add(parts[0])
            return self.constants.get(parts[0], "")
        self._problem(node, f"tensorrt has no {parts[0]}")
        return ""

    def _attribute(self, node: ast.Attribute, env: dict[str, str]) -> str:
        name = self._trt_name(node)
        if name:
            return self._resolve(node, name)
        if isinstance(node.value, ast.Name) and node.value.id == "self" and not env.get("self"):
            return self.attributes.get(node.attr, "")
        owner = self._expression(node.value, env)
        if owner not in self.classes or node.attr in UNIVERSAL:
            return ""
        record = self.classes[owner]
        if node.attr in record["properties"]:
            self.found.add(f"{owner}.{node.attr}")
            return python_type(record["properties"][node.attr]["type"], set(self.classes))
        if record["members"] is not None and node.attr in ("name", "value", *record["members"]):
            return ""
        if node.attr in record["methods"]:
            self.found.add(f"{owner}.{node.attr}")
            return ""
        self._problem(node, f"{owner} has no attribute {node.attr}")
        return ""

    def _call(self, node: ast.Call, env: dict[str, str]) -> str:
        for argument in node.args:
            self._expression(argument, env)
        for keyword in node.keywords:
            self._expression(keyword.value, env)
        function = node.func
        name = self._trt_name(function)
        if name:
            self._resolve(function, name)
            if name in self.classes:
                self._arguments(node, name, self.classes[name]["methods"].get("__init__", []))
                return name
            if name in self.functions:
                self._arguments(node, name, self.functions[name])
                return self._returned(self.functions[name])
            return ""
        if isinstance(function, ast.Name):
            if function.id == "cast" and node.args:
                return self._annotation(node.args[0])
            return self._annotation(self.returns.get(function.id))
        if isinstance(function, ast.Attribute):
            if isinstance(function.value, ast.Name) and function.value.id in ("self", "cls"):
                return self._annotation(self.returns.get(function.attr))
            owner = self._expression(function.value, env)
            if owner not in self.classes and function.attr in self.returns:
                return self._annotation(self.returns[function.attr])
            self._attribute(function, env)
            if owner in self.classes:
                signatures = self.classes[owner]["methods"].get(function.attr, [])
                self._arguments(node, f"{owner}.{function.attr}", signatures)
                return self._returned(signatures)
            return ""
        self._expression(function, env)
        return ""

    def _returned(self, signatures: Sequence[str]) -> str:
        kinds = {python_type(returned(signature), set(self.classes)) for signature in signatures}
        return kinds.pop() if len(kinds) == 1 else ""

    def _arguments(self, node: ast.Call, name: str, signatures: Sequence[str]) -> None:
        """The call's keywords and number of arguments must fit one overload."""
        readable = [found for found in map(parameters, signatures) if found is not None]
        if not signatures or len(readable) < len(signatures) or any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        unpacked = any(keyword.arg is None for keyword in node.keywords)
        for overload in readable:
            names = [parameter for parameter, _, _ in overload]
            needed = {parameter for parameter, _, has_default in overload[len(node.args) :] if not has_default}
            if len(node.args) <= len(names) and keywords <= set(names[len(node.args) :]) and (unpacked or needed <= keywords):
                return
        shown = ", ".join([f"{len(node.args)} by position", *sorted(keywords)])
        self._problem(node, f"{name} takes no such arguments ({shown}); it has {' or '.join(signatures)}")


def _returns(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """(name, return annotation) of each function."""
    return [(node.name, node.returns) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.returns is not None]


@cache
def _returns_of(source: str) -> list[tuple[str, ast.expr]]:
    """_returns of a source that many others have as a sibling."""
    return _returns(ast.parse(source))


def _agreed(found: Sequence[tuple[str, ast.expr]]) -> dict[str, ast.expr]:
    """Those names that have one annotation throughout."""
    texts: dict[str, set[str]] = {}
    for name, annotation in found:
        texts.setdefault(name, set()).add(ast.unparse(annotation))
    return {name: annotation for name, annotation in found if len(texts[name]) == 1}


def _elements(kind: str) -> list[str]:
    """The element types of "tuple[A, B]"; for "list[A]" the same type for a few positions."""
    if not kind.endswith("]"):
        return []
    head, _, inside = kind[:-1].partition("[")
    parts = [part.strip() for part in inside.split(",")] if "[" not in inside else [inside]
    return parts * 8 if head == "list" else parts


def _element(kind: str) -> str:
    """What iterating over it gives."""
    return _elements(kind)[0] if kind.startswith(("list[", "Sequence[", "tuple[")) else ""
