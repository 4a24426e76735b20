"""What the code of a class does with the weights of its submodules, read off its source.

The methods are followed as if they ran, with every name standing for all the submodules and weights
that it may: through local names, loops, helper functions and the class's other methods. What counts
is a weight that is computed with. Asking for its dtype, casting something like it or summing it up
for a report does not.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

# What may be asked of a weight without computing with it.
_HARMLESS = frozenset(
    (
        *("device", "dtype", "is_cuda", "is_meta", "layout", "ndim", "requires_grad", "shape"),
        *("all", "any", "dim", "element_size", "is_contiguous", "is_floating_point", "item", "max"),
        *("mean", "min", "norm", "numel", "size", "std", "sum", "tolist", "var"),
        *("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
    )
)
# Methods of other tensors that only look at what they are given.
_LIKE = frozenset(("copy_", "expand_as", "reshape_as", "to", "type_as", "view_as"))
_QUESTIONS = frozenset(("getattr", "hasattr", "id", "isinstance", "len", "print", "repr", "type"))
_PASSING = frozenset(("dict", "enumerate", "iter", "list", "next", "reversed", "tuple", "zip"))
_ENTRIES = frozenset(("children", "items", "named_children", "values"))
# Calls that are followed into each other.
_DEPTH = 6


@dataclass(frozen=True)
class Reads:
    """What a method of a class does with its submodules; "*" is every entry of a container.

    Attributes
    ----------
    weights : frozenset of str
        Paths of the submodules whose weight is computed with.
    methods : frozenset of (str, str)
        Paths of submodules with the methods that are called on them.
    """

    weights: frozenset[str]
    methods: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class _Module:
    """A submodule by its path, () for the module itself."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class _Weight:
    """The weight of a submodule, or what was made of it."""

    path: tuple[str, ...]


_Values = frozenset[_Module | _Weight]
_NOTHING: _Values = frozenset()


@cache
def reads(owner: Any, method: str = "forward") -> Reads:
    """What a method of a class does with the weights of its submodules; nothing without source."""
    reader = _Reader(owner)
    returned = reader.own_method(method, 0, [], {}, 0)
    reader.use(returned)
    return Reads(frozenset(reader.weights), frozenset(reader.foreign))


@dataclass
class _Reader:
    """Follows the methods of one class."""

    owner: type
    weights: set[str] = field(default_factory=set)
    foreign: set[tuple[str, str]] = field(default_factory=set)
    running: set[int] = field(default_factory=set)

    def own_method(
        self,
        name: str,
        above: int,
        args: Sequence[_Values],
        keywords: Mapping[str | None, _Values],
        depth: int,
    ) -> _Values:
        """Follow the method of that name, of the class or of those `above` it."""
        known = _methods(self.owner).get(name, ())
        found = next(((place, method) for place, method in known if place >= above), None)
        if found is None:
            return _NOTHING
        place, method = found
        static = any("staticmethod" in ast.unparse(d) for d in method.decorator_list)
        bound = [] if static else [frozenset([_Module(())])]
        return self.follow(method, place, [*bound, *args], keywords, depth)

    def follow(
        self,
        function: ast.FunctionDef,
        place: int | dict[str, Any],
        args: Sequence[_Values],
        keywords: Mapping[str | None, _Values],
        depth: int,
    ) -> _Values:
        """What a function returns; `place` is that of its class, or the names that it sees."""
        if depth > _DEPTH or id(function) in self.running:
            return _NOTHING
        names = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bound = {name.arg: value for name, value in zip(names, args, strict=False)}
        bound |= {name: value for name, value in keywords.items() if name is not None}
        self.running.add(id(function))
        body = _Body(self, place, bound, depth)
        body.run(function.body)
        self.running.discard(id(function))
        return body.returned

    def use(self, values: Iterable[_Module | _Weight]) -> None:
        """Note that weights are computed with."""
        self.weights |= {".".join(v.path) for v in values if isinstance(v, _Weight) and v.path}


class _Body(ast.NodeVisitor):
    """Goes through the statements of one function; a name keeps all that it was ever bound to."""

    def __init__(
        self, reader: _Reader, place: int | dict[str, Any], names: dict[str, _Values], depth: int
    ) -> None:
        self.reader, self.place, self.names, self.depth = reader, place, names, depth
        self.returned = _NOTHING
        self.inner: dict[str, ast.FunctionDef] = {}

    def run(self, body: Sequence[ast.stmt]) -> None:
        """Twice, for names that a loop binds after it has used them."""
        for _ in range(2):
            for node in body:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inner[node.name] = node

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned |= self.value(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target, value, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.value(node.value))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.reader.use(self.value(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, _entries(self.value(node.iter)))
        for inner in (*node.body, *node.orelse):
            self.visit(inner)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            value = self.value(item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value)
        for inner in node.body:
            self.visit(inner)

    def generic_visit(self, node: ast.AST) -> None:
        """Statements of other kinds, whose expressions are worked out."""
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.expr):
                self.value(inner)
            else:
                self.visit(inner)

    def bind(self, target: ast.expr, value: _Values, source: ast.expr | None = None) -> None:
        """Bind a name, or all names of a tuple; those of attributes are not followed."""
        if isinstance(target, ast.Name):
            self.names[target.id] = self.names.get(target.id, _NOTHING) | value
        elif isinstance(target, ast.Starred):
            self.bind(target.value, value)
        elif isinstance(target, ast.Tuple | ast.List):
            parts = source.elts if isinstance(source, ast.Tuple | ast.List) else ()
            each = [self.value(part) for part in parts]
            for k, inner in enumerate(target.elts):
                same = len(each) == len(target.elts)
                self.bind(inner, each[k] if same else _entries(value))

    def value(self, node: ast.expr) -> _Values:
        """What an expression may stand for."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _NOTHING)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BinOp):
            return self.product(node)
        if isinstance(node, ast.Subscript):
            self.value(node.slice)
            return _entries(self.value(node.value))
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self.bind(node.target, value)
            return value
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for part in node.generators:
                self.bind(part.target, _entries(self.value(part.iter)))
                for condition in part.ifs:
                    self.value(condition)
        if isinstance(node, ast.Compare | ast.Lambda):
            self.generic_visit(node)
            return _NOTHING
        return _all(
            self.value(inner) for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.expr)
        )

    def attribute(self, values: _Values, name: str) -> _Values:
        """An attribute of what is there: a weight, a submodule, a property's value."""
        found: set[_Module | _Weight] = set()
        for value in values:
            if isinstance(value, _Weight):
                found |= set() if name in _HARMLESS else {value}
            elif name == "weight":
                found |= {_Weight(value.path)}
            elif not value.path and _is_property(self.reader.owner, name):
                found |= self.reader.own_method(name, 0, [], {}, self.depth + 1)
            else:
                found |= {_Module((*value.path, name))}
        return frozenset(found)

    def product(self, node: ast.BinOp) -> _Values:
        """A product or sum: with a number it still is the weight, with anything else it is used."""
        sides = node.left, node.right
        values = [self.value(side) for side in sides]
        if any(isinstance(side, ast.Constant) for side in sides):
            return values[0] | values[1]
        self.reader.use(values[0] | values[1])
        return _NOTHING

    def call(self, node: ast.Call) -> _Values:
        """What a call returns; weights that it computes with are noted."""
        args = [self.value(arg) for arg in node.args]
        keywords: dict[str | None, _Values] = {k.arg: self.value(k.value) for k in node.keywords}
        given = _all([*args, *keywords.values()])
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _PASSING:
            return given
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            return self.attribute(args[0], str(node.args[1].value))
        if name in _QUESTIONS:
            return _NOTHING
        if isinstance(node.func, ast.Attribute):
            return self.method(node.func, args, keywords)
        # Whatever a function does with a weight, elsewhere it may be a kernel that computes.
        self.reader.use(given)
        function = self.inner.get(name) or _function(self.seen(), name)
        if function is None or name in self.names:
            self.value(node.func)
            return _NOTHING
        place = self.place if name in self.inner else _names_of(self.seen(), name)
        return self.reader.follow(function, place, args, keywords, self.depth + 1)

    def method(
        self,
        function: ast.Attribute,
        args: Sequence[_Values],
        keywords: Mapping[str | None, _Values],
    ) -> _Values:
        """A call of an attribute: of the module, of a submodule, of a weight, of anything else."""
        name, given = function.attr, _all([*args, *keywords.values()])
        if _is_super(function.value) and isinstance(self.place, int):
            return self.reader.own_method(name, self.place + 1, args, keywords, self.depth + 1)
        values, found = self.value(function.value), _NOTHING
        for value in values:
            if isinstance(value, _Weight):
                asked = name in _HARMLESS or name.endswith("_") or (name == "type" and not args)
                found |= _NOTHING if asked else {value}
            elif name in _ENTRIES and name not in _methods(self.reader.owner):
                found |= _entries(frozenset([value]))
            elif not value.path and name in _methods(self.reader.owner):
                found |= self.reader.own_method(name, 0, args, keywords, self.depth + 1)
            elif value.path:
                self.reader.foreign.add((".".join(value.path), name))
        if name not in _LIKE:
            self.reader.use(given)
        return found

    def seen(self) -> dict[str, Any]:
        """The global names that the function sees."""
        if isinstance(self.place, dict):
            return self.place
        return vars(sys.modules[self.reader.owner.__mro__[self.place].__module__])


def _all(values: Iterable[_Values]) -> _Values:
    return frozenset().union(*values)


def _entries(values: _Values) -> _Values:
    """What iterating gives: entries of containers, and what a tuple was made of."""
    return values | {_Module((*v.path, "*")) for v in values if isinstance(v, _Module) and v.path}


def _is_super(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "super"


def _is_property(owner: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(owner, name, None), property)


@cache
def _methods(owner: type) -> dict[str, list[tuple[int, ast.FunctionDef]]]:
    """The methods of a class and its bases, below ``nn.Module``, with the place of each class."""
    methods: dict[str, list[tuple[int, ast.FunctionDef]]] = {}
    for place, base in enumerate(owner.__mro__):
        if base in (nn.Module, object):
            break
        tree = _parsed(base)
        for node in tree.body if isinstance(tree, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef):
                methods.setdefault(node.name, []).append((place, node))
    return methods


def _function(seen: Mapping[str, Any], name: str) -> ast.FunctionDef | None:
    """The source of a global function that is not torch's."""
    found = inspect.unwrap(seen[name]) if callable(seen.get(name)) else None
    if not inspect.isfunction(found) or found.__module__.split(".")[0] == "torch":
        return None
    tree = _parsed(found)
    return tree if isinstance(tree, ast.FunctionDef) else None


def _names_of(seen: Mapping[str, Any], name: str) -> dict[str, Any]:
    return inspect.unwrap(seen[name]).__globals__  # type: ignore[no-any-return]


@cache
def _parsed(code: Any) -> ast.AST | None:
    """The source of a class or function, parsed; None where there is none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
