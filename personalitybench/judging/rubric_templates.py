"""Templates of rubrics: a small part of Jinja, so that no file makes rendering endless or its text huge.

Variables, tests, conditions, loops over the traits and their facets, and filters that do not multiply text.
:mod:`~personalitybench.judging.rubrics` renders them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE = 100_000
"""Characters of a template."""

_MAX_RENDERED = 200_000  # characters besides what its variables hold, each of which may stand there a few times
_MAX_SHOWN = 4
_MAX_LOOPS = 2
_MAX_FILTER_TEXT = 100  # characters of a filter's argument
_LISTS = frozenset({"traits", "facets"})
_LIST_FILTERS = frozenset({"list", "map", "reverse", "sort", "unique"})
_FILTERS = _LIST_FILTERS | frozenset(
    {"capitalize", "count", "d", "default", "first", "join", "last", "length", "lower", "title", "trim", "upper"}
)
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.CondExpr, nodes.If, nodes.For, nodes.Tuple, nodes.List, nodes.Concat, nodes.Keyword,
)  # fmt: skip

TEMPLATE_ERRORS = (
    TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, SyntaxError,
    MemoryError,
)  # fmt: skip
"""What a wrong template raises when it is read or rendered."""


def render(source: str, values: Mapping[str, object]) -> str:
    """Render a template.

    Raises:
        TEMPLATE_ERRORS: It is wrong, holds more than the small part, fails on these values or makes too much text.
    """
    limit = _MAX_RENDERED + _MAX_SHOWN * sum(len(value) for value in values.values() if isinstance(value, str))
    pieces, length = [], 0
    for piece in compile_template(source).generate(values):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            raise ValueError(f"it makes more than {limit:,} characters")
    return "".join(pieces)


@lru_cache(maxsize=64)
def compile_template(source: str) -> Template:
    """Check and compile a template.

    Raises:
        TEMPLATE_ERRORS: It is wrong, or holds more than the small part.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has more than {MAX_SOURCE:,} characters")
    # Plain text for a language model, not HTML; question and answer are values, never part of a template's source.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    # What draws by chance would make another message each time.
    environment.globals.clear()
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    _check(environment.parse(source), loops=0)  # before compiling, which computes constants
    return environment.from_string(source)


def _check(node: nodes.Node, loops: int) -> None:
    if not isinstance(node, _NODES):
        raise _refusal(f"{type(node).__name__} is not for rubrics", node)
    if isinstance(node, nodes.For):
        loops += 1
        if loops > _MAX_LOOPS or not _is_list(node.iter):
            raise _refusal("loops go over 'traits' or 'facets', one within another at most", node)
    if isinstance(node, nodes.Filter):
        _check_filter(node)
    for child in node.iter_child_nodes():
        _check(child, loops)


def _check_filter(node: nodes.Filter) -> None:
    if node.name not in _FILTERS:
        raise _refusal(f"No filter named {node.name!r} for rubrics: there are {', '.join(sorted(_FILTERS))}", node)
    values = [*node.args, *(keyword.value for keyword in node.kwargs)]
    if node.dyn_args or node.dyn_kwargs or not all(isinstance(value, nodes.Const) for value in values):
        raise _refusal(f"arguments of the filter {node.name!r} are constants", node)
    if any(len(str(value.value)) > _MAX_FILTER_TEXT for value in values if isinstance(value, nodes.Const)):
        raise _refusal(f"an argument of the filter {node.name!r} has more than {_MAX_FILTER_TEXT} characters", node)
    if node.name == "join" and not _is_list(node.node):
        raise _refusal("'join' is for 'traits' and 'facets'", node)


def _is_list(node: nodes.Node | None) -> bool:
    if isinstance(node, nodes.Filter):
        return node.name in _LIST_FILTERS and _is_list(node.node)
    return (isinstance(node, nodes.Name) and node.name in _LISTS) or (
        isinstance(node, nodes.Getattr) and node.attr in _LISTS
    )


def _refusal(text: str, node: nodes.Node) -> TemplateSyntaxError:
    return TemplateSyntaxError(f"line {node.lineno}: {text}", node.lineno)
