"""Linear layers whose weight is used without calling the layer.

An adapter changes what a layer does when it is called. Some modules take the weight of a child
instead and compute by themselves, always or where a fused kernel is at hand: torch's multi-head
attention, Mamba's mixers on a GPU. There an adapter would never train, and nobody would notice.
Such children are found in the source of their parents' classes, so that the answer does not depend
on the machine.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import nn

# What may be asked of a weight without computing with it.
_METADATA = frozenset(
    (
        *("device", "dtype", "is_cuda", "is_floating_point", "is_meta", "requires_grad", "type"),
        *("dim", "element_size", "ndim", "numel", "shape", "size"),
    )
)
_QUESTIONS = frozenset(("isinstance", "hasattr", "getattr", "type"))
# Weights that are read only where a user asks for another way to compute. torch's encoder reads
# these two in evaluation, but for layers with hooks, and adapted ones get one.
_CALLED = {
    "BloomAttention": {"dense"},
    "BloomMLP": {"dense_4h_to_h"},
    "DisentangledSelfAttention": {"in_proj"},
    "TransformerEncoderLayer": {"linear1", "linear2"},
}


def uncalled(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Names of the modules whose weight an outer module uses by itself, each with that one's class.

    Parameters
    ----------
    modules : iterable of (str, torch.nn.Module)
        The modules of a model by name.

    Examples
    --------
    >>> model = nn.TransformerDecoderLayer(16, 2)
    >>> uncalled(model.named_modules())
    {'self_attn.out_proj': 'MultiheadAttention', 'multihead_attn.out_proj': 'MultiheadAttention'}
    """
    found = {}
    for name, module in modules:
        kind: Any = type(module)
        for path in weights_used(kind):
            for inner in _resolved(module, path.split(".")):
                found[f"{name}.{inner}".removeprefix(".")] = type(module).__name__
    return found


@cache
def weights_used(owner: Any) -> frozenset[str]:
    """Paths of the submodules whose weight the forward pass of a class uses by itself.

    A "*" in a path stands for every entry of a container. Empty where the class has no source.
    """
    methods = _methods(owner)
    open_, seen, found = ["forward"], {"forward"}, set()
    while open_:
        method = methods.get(open_.pop())
        if method is None:
            continue
        for node, parent in _nodes(method):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            path = _path(node)
            if path and path in methods and path not in seen:
                seen.add(path)
                open_.append(path)
            if path.endswith(".weight") and not _harmless(parent):
                found.add(path.removesuffix(".weight"))
    return frozenset(found - _CALLED.get(owner.__name__, set()))


def _methods(owner: type) -> dict[str, ast.AST]:
    """The methods of a class and its bases, below ``nn.Module``, parsed."""
    methods: dict[str, ast.AST] = {}
    for base in owner.__mro__:
        if base in (nn.Module, object):
            break
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef):
                methods.setdefault(node.name, node)
    return methods


def _nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Every node of a tree, with its parent."""
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            yield node, parent


def _path(node: ast.AST) -> str:
    """The path of an attribute of ``self``, or nothing."""
    parts: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Subscript):
            parts.append("*")
        else:
            return ""
        node = node.value
    return ".".join(reversed(parts)) if node.id == "self" else ""


def _harmless(parent: ast.AST) -> bool:
    """Whether a weight is asked for what it is, and not computed with."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in _METADATA
    if isinstance(parent, ast.Compare):
        return all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)
    return (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Name)
        and parent.func.id in _QUESTIONS
    )


def _resolved(module: nn.Module, path: list[str]) -> Iterator[str]:
    """Names of the submodules that a path stands for."""
    if not path:
        yield ""
        return
    first, *rest = path
    children = dict(module.named_children())
    for name in children if first == "*" else [first] if first in children else []:
        for inner in _resolved(children[name], rest):
            yield f"{name}.{inner}".removesuffix(".")
