"""Finds every name of NVIDIA's `tensorrt` that a source uses, and checks it against the table of releases.

What a name belongs to is told by a few rules, not by running anything:
* `trt`, and `self._trt`, is the module: that is what our functions call it (`trt: Any`).
* What comes from the module is followed through assignments, loops, `with`, calls (RETURNS), and `made(what, function, ...)`,
  which gives what the function gives.
* Where that ends, the variable's or attribute's own name decides (CONVENTION, `_engine` and `engines[...]` too), unless it is
  annotated as something else than Any or made by a class of ours.
* An attribute that looks like TensorRT's on something unknown is reported: give the thing one of the names of CONVENTION.

A use counts for the releases in which its line can run. `hasattr(owner, "name")`, `version(trt) < (10, 12)` and
`value is None` after `value = getattr(owner, "name", None)` narrow them, in `if`, `and`, `or`, `not`, `x if c else y` and
after an early return. `getattr` with a default, and what stands in `try` before `except AttributeError`, must be in one release
at least. `getattr(owner, name)` needs a `name` that loops over literal strings, or over `something.flags`, where `flags` is
defined in the same sources; its upper-case strings are the names.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tests.tensorrt_table import OWNERS, RELEASES, where

EVERY = frozenset(RELEASES)

CONVENTION = {"logger": "ILogger", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
              "config": "IBuilderConfig", "profile": "IOptimizationProfile", "cache": "ITimingCache",
              "timing_cache": "ITimingCache", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
              "inspector": "EngineInspector", "layer": "ILayer", "tensor": "ITensor", "monitor": "IProgressMonitor"}

RETURNS = {
    "Builder.create_network": "INetworkDefinition", "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile", "Builder.build_serialized_network": "IHostMemory",
    "INetworkDefinition.get_input": "ITensor", "INetworkDefinition.get_output": "ITensor",
    "INetworkDefinition.get_layer": "ILayer", "INetworkDefinition.add_constant": "IConstantLayer",
    "INetworkDefinition.add_shuffle": "IShuffleLayer", "INetworkDefinition.add_matrix_multiply": "IMatrixMultiplyLayer",
    "INetworkDefinition.add_elementwise": "IElementWiseLayer", "INetworkDefinition.add_unary": "IUnaryLayer",
    "INetworkDefinition.add_reduce": "IReduceLayer",
    "INetworkDefinition.add_softmax": "ISoftMaxLayer", "INetworkDefinition.add_slice": "ISliceLayer",
    "ILayer.get_output": "ITensor", "ILayer.get_input": "ITensor", "OnnxParser.get_error": "ParserError",
    "IBuilderConfig.create_timing_cache": "ITimingCache", "IBuilderConfig.get_timing_cache": "ITimingCache",
    "ITimingCache.serialize": "IHostMemory", "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_execution_context": "IExecutionContext", "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.serialize": "IHostMemory"}
"""What a method gives that has names of its own; other methods and properties give plain values."""

_INHERITED = ("ILayer", "ILogger")
"""Bases whose members their subclasses have too; the table lists what a class adds."""

_OURS = ("engines", "edge", "calibration", "distillation")

_OPERATORS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq}


class Use(NamedTuple):
    """owner '' is the module. runs_in: releases in which the line can run. guarded: it copes with the name's absence."""

    owner: str
    name: str
    line: int
    runs_in: frozenset[str]
    guarded: bool


@dataclass(frozen=True)
class Kind:
    """What an expression is: 'module', 'class' or 'object' of `owner`, 'member' (`owner`.`name`, not yet called), 'list' of
    `owner` objects, 'version', 'plain' (nothing of TensorRT's). there: for what a getattr with a default gave, where it is
    not None."""

    what: str
    owner: str = ""
    name: str = ""
    there: frozenset[str] | None = None


PLAIN, MODULE, VERSION = Kind("plain"), Kind("module"), Kind("version")


def is_about_tensorrt(tree: ast.AST) -> bool:
    return any((isinstance(node, ast.Name) and node.id == "trt") or (isinstance(node, ast.arg) and node.arg == "trt")
               or (isinstance(node, ast.Import) and any(each.name.split(".")[0] == "tensorrt" for each in node.names))
               for node in ast.walk(tree))


def flags_defined(trees: Iterable[ast.AST]) -> frozenset[str]:
    """Upper-case strings in functions or assignments called `flags`, in any of the sources."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            named = node.name if isinstance(node, ast.FunctionDef) else next(
                (t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)), "")
            if named.lower().lstrip("_") == "flags":
                found |= {each.value for each in ast.walk(node)
                          if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isupper()}
    return frozenset(found)


def _by_name(name: str) -> Kind | None:
    name = name.lstrip("_")
    if name == "trt":
        return MODULE
    return Kind("object", CONVENTION[name]) if name in CONVENTION else None


def _ends(block: list[ast.stmt]) -> bool:
    return bool(block) and isinstance(block[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


class Walk:
    """One source. `uses` and `problems` are filled when it is made."""

    def __init__(self, source: str, flags: frozenset[str] = frozenset()) -> None:
        self.uses: list[Use] = []
        self.problems: list[str] = []
        self._flags = flags
        self._gives: dict[str, Kind] = {}
        tree = ast.parse(source)
        if not is_about_tensorrt(tree):
            return
        for _ in range(2):  # the first time through learns what our own functions and attributes are
            self._runs_in, self._guarded = EVERY, False
            self._names: dict[str, Kind] = {}
            self._words: dict[str, frozenset[str]] = {}
            self.uses.clear()
            self.problems.clear()
            self._block(tree.body)

    # --- statements

    def _block(self, block: list[ast.stmt]) -> None:
        before = self._runs_in
        for statement in block:
            self._statement(statement)
        self._runs_in = before

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node)
        elif isinstance(node, (ast.If, ast.While)):
            yes, no = self._test(node.test)
            with self._only(yes):
                self._block(node.body)
            with self._only(no):
                self._block(node.orelse)
            if isinstance(node, ast.If) and _ends(node.body):
                self._runs_in &= no
        elif isinstance(node, ast.Try):
            caught = {each.id for handler in node.handlers if handler.type for each in ast.walk(handler.type)
                      if isinstance(each, ast.Name)}
            with self._coping("AttributeError" in caught):
                self._block(node.body)
            for block in (*(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                self._block(block)
        elif isinstance(node, ast.For):
            self._loop(node.target, node.iter)
            self._block(node.body)
            self._block(node.orelse)
        elif isinstance(node, ast.With):
            for item in node.items:
                kind = self._kind(item.context_expr)
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, kind, item.context_expr)
            self._block(node.body)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self._kind(base)
            names = dict(self._names)
            self._block(node.body)
            self._names = names
        elif isinstance(node, ast.Assign):
            kind = self._kind(node.value)
            for target in node.targets:
                self._assign(target, kind, node.value)
        elif isinstance(node, ast.AnnAssign):
            kind = self._kind(node.value) if node.value else None
            self._assign(node.target, kind or self._annotated(node.annotation, node.target), node.value)
        elif isinstance(node, ast.Return):
            self._returned.append(self._kind(node.value) if node.value else None)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._kind(child)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """What others' modules give is nothing of TensorRT's; of our own we know no more than the names."""
        for each in node.names:
            root = (each.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            if root == "tensorrt":
                self._names[each.asname or "tensorrt"] = MODULE
            elif root not in ("", *_OURS):
                self._names[each.asname or each.name.split(".")[0]] = PLAIN

    _returned: list[Kind | None] = []

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        names, words, returned, runs_in = dict(self._names), dict(self._words), self._returned, self._runs_in
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self._names.pop(arg.arg, None)
            known = self._annotated(arg.annotation, ast.Name(arg.arg)) if arg.annotation else _by_name(arg.arg)
            if known:
                self._names[arg.arg] = known
        self._returned = []
        self._block(node.body)
        given = next((kind for kind in self._returned if kind not in (None, PLAIN)), None)
        if given is None and node.returns is not None and not self._is_any(node.returns):
            given = PLAIN
        if given is not None:
            self._gives[node.name] = given
        kept = {name: kind for name, kind in self._names.items() if name[0] == "."}  # attributes, until the class ends
        self._names, self._words, self._returned, self._runs_in = names | kept, words, returned, runs_in

    def _is_any(self, annotation: ast.expr) -> bool:
        return "Any" in {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}

    def _annotated(self, annotation: ast.expr, target: ast.expr) -> Kind | None:
        if not self._is_any(annotation):
            return PLAIN
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        return _by_name(name) or _by_name(name.removesuffix("s"))

    def _assign(self, target: ast.expr, kind: Kind | None, value: ast.expr | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values = value.elts if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) else None
            for i, each in enumerate(target.elts):
                self._assign(each, self._quietly(values[i]) if values else None, values[i] if values else None)
            return
        if isinstance(target, ast.Attribute):
            owner = self._kind(target.value)
            if owner is not None and owner.what in ("module", "class", "object"):
                self._use(owner, target.attr, target.lineno)
                return
            name = f".{target.attr}"
        elif isinstance(target, ast.Name):
            name = target.id
        else:
            self._kind(target)
            return
        if isinstance(value, ast.Constant) and value.value is None:
            return  # let go of; what it was is not forgotten
        if kind is None and not self._ours(value):
            kind = _by_name(name.lstrip("."))
        if kind is not None:
            self._names[name] = kind
        else:
            self._names.pop(name, None)

    def _ours(self, value: ast.expr | None) -> bool:
        """Whether it is made by a class of ours."""
        return (isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
                and value.func.id.lstrip("_")[:1].isupper())

    def _loop(self, target: ast.expr, over: ast.expr) -> None:
        kind = self._kind(over)
        words = frozenset(each.value for each in over.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)) \
            if isinstance(over, (ast.Tuple, ast.List, ast.Set)) else frozenset()
        if isinstance(over, ast.Attribute) and over.attr == "flags" and (kind is None or kind == PLAIN):
            words = self._flags
        if isinstance(target, ast.Name) and words:
            self._words[target.id] = words
        element = Kind("object", kind.owner) if kind is not None and kind.what == "list" else kind if kind == PLAIN else None
        self._assign(target, element, None)

    # --- where a line can run

    @contextmanager
    def _only(self, releases: frozenset[str]) -> Iterator[None]:
        before = self._runs_in
        self._runs_in = before & releases
        yield
        self._runs_in = before

    @contextmanager
    def _coping(self, copes: bool) -> Iterator[None]:
        before = self._guarded
        self._guarded = before or copes
        yield
        self._guarded = before

    def _test(self, node: ast.expr) -> tuple[frozenset[str], frozenset[str]]:
        """Evaluates a condition: releases in which it may hold, and in which it may fail."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yes, no = self._test(node.operand)
            return no, yes
        if isinstance(node, ast.BoolOp):
            both = isinstance(node.op, ast.And)
            go_on, stop = EVERY, frozenset[str]()
            for each in node.values:
                with self._only(go_on):
                    yes, no = self._test(each)
                go_on, stop = (go_on & yes, stop | no) if both else (go_on & no, stop | yes)
            return (go_on, stop) if both else (stop, go_on)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            there = self._asked(node, guarded=True)
            return (EVERY, EVERY) if there is None else (there, EVERY - there)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, op, right = self._kind(node.left), node.ops[0], node.comparators[0]
            self._kind(right)
            if left == VERSION and isinstance(right, ast.Tuple) and type(op) in _OPERATORS:
                bound = ast.literal_eval(right)
                yes = frozenset(r for r in RELEASES if _OPERATORS[type(op)](tuple(map(int, r.split("."))), bound))
                return yes, EVERY - yes
            if left is not None and left.there is not None and isinstance(op, (ast.Is, ast.IsNot)):
                there = left.there
                return (there, EVERY - there) if isinstance(op, ast.IsNot) else (EVERY - there, there)
            return EVERY, EVERY
        kind = self._kind(node)
        return (kind.there, EVERY - kind.there) if kind is not None and kind.there is not None else (EVERY, EVERY)

    # --- expressions

    def _quietly(self, node: ast.expr) -> Kind | None:
        """The kind of what was already looked at."""
        uses, problems = len(self.uses), len(self.problems)
        kind = self._kind(node)
        del self.uses[uses:], self.problems[problems:]
        return kind

    def _kind(self, node: ast.expr) -> Kind | None:
        """Looks at every name in an expression; what the expression is, None where nothing is known."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id) or (_by_name(node.id) if node.id == "trt" else None)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self._kind(node.slice)
            base = self._kind(node.value)
            if base is not None and base.what == "list":
                return Kind("object", base.owner)
            name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            # `engines[part]`: a dict or list of them
            return _by_name(name.removesuffix("s")) if name.endswith("s") and base is None or base == PLAIN else base
        if isinstance(node, ast.IfExp):
            yes, no = self._test(node.test)
            with self._only(yes):
                first = self._kind(node.body)
            with self._only(no):
                second = self._kind(node.orelse)
            return first if first not in (None, PLAIN) else second
        if isinstance(node, (ast.BoolOp, ast.Compare)) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            self._test(node)
            return PLAIN
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            return self._comprehension(node)
        if isinstance(node, ast.NamedExpr):
            kind = self._kind(node.value)
            self._assign(node.target, kind, node.value)
            return kind
        if isinstance(node, ast.Constant):
            return None if node.value is None else PLAIN
        if isinstance(node, ast.Lambda):
            return self._kind(node.body)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._kind(child)
        return PLAIN

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp) -> Kind:
        names, words, runs_in = dict(self._names), dict(self._words), self._runs_in
        for each in node.generators:
            self._loop(each.target, each.iter)
            for test in each.ifs:
                self._runs_in &= self._test(test)[0]
        element = self._kind(node.value if isinstance(node, ast.DictComp) else node.elt)
        if isinstance(node, ast.DictComp):
            self._kind(node.key)
        self._names, self._words, self._runs_in = names, words, runs_in
        return Kind("list", element.owner) if element is not None and element.what == "object" else PLAIN

    def _attribute(self, node: ast.Attribute) -> Kind | None:
        base = self._kind(node.value)
        if base is not None and base.what in ("module", "class", "object"):
            return self._use(base, node.attr, node.lineno)
        if base is not None:
            return PLAIN
        kind = self._names.get(f".{node.attr}") or _by_name(node.attr)
        if kind is None and "_" in node.attr.strip("_") and any(name == node.attr for _, name in where()):
            self.problems.append(f"line {node.lineno}: cannot tell what .{node.attr} belongs to")
        return kind

    def _call(self, node: ast.Call) -> Kind | None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("hasattr", "getattr"):
            there = self._asked(node, guarded=name == "hasattr" or len(node.args) == 3)
            if name == "hasattr" or there is None:
                return PLAIN
            owner = self._quietly(node.args[0])
            asked = node.args[1]
            kind = self._of(owner, asked.value) if owner and isinstance(asked, ast.Constant) else PLAIN
            return Kind(kind.what, kind.owner, kind.name, there if len(node.args) == 3 else None)
        args = [self._kind(each.value if isinstance(each, ast.Starred) else each) for each in node.args]
        for keyword in node.keywords:
            self._kind(keyword.value)
        if name == "made" and len(args) > 1:
            return self._result(args[1])
        if name == "version" and MODULE in args:
            return VERSION
        if name in ("list", "tuple", "sorted", "reversed", "iter") and args:
            return args[0]
        if name in ("__import__", "import_module") and "tensorrt" in ast.unparse(node):
            return MODULE
        func = self._kind(node.func)
        if func is not None and func != PLAIN:
            return self._result(func)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else name
        return self._gives.get(called, func)

    def _result(self, func: Kind | None) -> Kind | None:
        """What calling it gives."""
        if func is None:
            return None
        if func.what == "class":
            return Kind("object", func.owner)
        if func.what == "member":
            returned = RETURNS.get(f"{func.owner}.{func.name}")
            return Kind("object", returned) if returned else PLAIN
        return PLAIN

    # --- names

    def _asked(self, node: ast.Call, guarded: bool) -> frozenset[str] | None:
        """hasattr or getattr: the releases that have the name; None where it is not about TensorRT."""
        for each in node.args[2:]:
            self._kind(each)
        owner, asked = self._kind(node.args[0]), node.args[1]
        if owner is None or owner.what not in ("module", "class", "object"):
            return None
        if isinstance(asked, ast.Constant):
            names = frozenset([asked.value])
        else:
            names = self._words.get(asked.id, frozenset()) if isinstance(asked, ast.Name) else frozenset()
        if not names:
            self.problems.append(f"line {node.lineno}: cannot tell which names getattr asks for: loop over literal strings")
        with self._coping(guarded):
            for name in sorted(names):
                self._use(owner, name, node.lineno)
        return frozenset.union(*(_releases(_owner(owner, name), name) for name in names)) if names else None

    def _use(self, base: Kind, name: str, line: int) -> Kind:
        owner = _owner(base, name)
        if not name.startswith("__"):
            self.uses.append(Use(owner, name, line, self._runs_in, self._guarded))
        return self._of(base, name)

    def _of(self, base: Kind, name: str) -> Kind:
        """What `base.name` is."""
        if base.what == "module":
            return Kind("class", name) if name in OWNERS or name[:1].isupper() else PLAIN
        nested = f"{base.owner}.{name}"
        if nested in OWNERS:
            return Kind("class", nested)
        return PLAIN if base.what == "class" and name.isupper() else Kind("member", base.owner, name)


def _owner(base: Kind, name: str) -> str:
    """The class that has the member: a layer's kind, or the layer that all of them are."""
    if base.what == "module":
        return ""
    if (base.owner, name) not in where() and base.owner not in ("ILayer", "ILogger"):
        for parent in _INHERITED:
            if base.owner.endswith(parent[1:]) and (parent, name) in where():
                return parent
    return base.owner


def _releases(owner: str, name: str) -> frozenset[str]:
    return where().get((owner, name), frozenset())


def faults(walk: Walk) -> list[str]:
    """What is wrong with the names that a source uses, line by line."""
    found = list(walk.problems)
    for use in walk.uses:
        said = f"line {use.line}: {'.'.join(filter(None, ('trt', use.owner, use.name)))}"
        there = _releases(use.owner, use.name)
        if use.owner and use.owner not in OWNERS:
            found.append(f"{said}: the table knows no members of {use.owner}; add them to tensorrt_names.json")
        elif not there:
            found.append(f"{said}: in no release; misspelt, or missing in tensorrt_names.json")
        elif not use.guarded and use.runs_in - there:
            missing = ", ".join(release for release in RELEASES if release in use.runs_in - there)
            found.append(f"{said}: not in {missing}; ask with hasattr or getattr")
    return found
