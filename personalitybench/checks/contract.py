"""The class itself, and its settings. Nothing is asked and no model is needed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, get_args

from personalitybench.checks.results import BrokenPromiseError, describe_error
from personalitybench.checks.subject import Subject
from personalitybench.errors import ConfigurationError
from personalitybench.methods import MethodSettings, Need, create_method

UNKNOWN = "no_such_setting"
WRONG_VALUES: tuple[Any, ...] = ({"not": "a value"}, ["not a value"], "not a value", 0.123456789)
"""One of them is refused by every type but ``Any``."""

_HOOKS = {"describe_fit": 1, "plan_fit": 1, "tidy_fit": 1}
"""Optional methods, with how many arguments they are called."""


def contract(subject: Subject) -> str:
    """The class has the attributes of the contract, of the right types, and its methods take what they are given."""
    kind = subject.kind
    if not isinstance(kind, type):
        raise BrokenPromiseError(f"{subject.wanted.name!r} names a {type(kind).__name__}: register a class")
    problems = [*_attributes(kind), *_methods(kind)]
    if problems:
        raise BrokenPromiseError(f"class {kind.__name__}: {'; '.join(problems)}")
    hooks = [name for name in (*_HOOKS, "check_settings") if hasattr(kind, name)]
    return f"class {kind.__name__} of {kind.__module__}" + (f", with {', '.join(hooks)}" if hooks else "")


def _attributes(kind: type) -> list[str]:
    known = get_args(Need)
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "summary": ("a text of one line", lambda it: isinstance(it, str) and bool(it.strip()) and "\n" not in it),
        "version": ("a text, such as '1'", lambda it: isinstance(it, str) and bool(it)),
        "needs": (
            f"a frozenset of {', '.join(map(repr, known))}, or empty",
            lambda it: isinstance(it, frozenset) and it <= frozenset(known),
        ),
        "has_strength": ("True or False", lambda it: isinstance(it, bool)),
        "Settings": (
            "a subclass of MethodSettings",
            lambda it: isinstance(it, type) and issubclass(it, MethodSettings),
        ),
    }
    problems = []
    for name, (wanted, right) in rules.items():
        if not hasattr(kind, name):
            problems.append(f"{name!r} is missing: it is {wanted}")
        elif not right(getattr(kind, name)):
            problems.append(f"{name!r} is {getattr(kind, name)!r}: it must be {wanted}")
    return problems


def _methods(kind: type) -> list[str]:
    wanted = {"__init__": "settings, context", "fit": "context", "induce": "target, strength, question"}
    given = {name: len(arguments.split(",")) for name, arguments in wanted.items()}
    problems = []
    for name, count in (given | {hook: n for hook, n in _HOOKS.items() if hasattr(kind, hook)}).items():
        found = getattr(kind, name, None)
        if not callable(found):
            problems.append(f"method {name}({wanted.get(name, '...')}) is missing")
            continue
        try:
            inspect.signature(found).bind(*[None] * (count + 1))
        except TypeError as error:
            problems.append(f"{name} cannot be called with ({wanted.get(name, 'one argument')}): {error}")
    return problems


def settings(subject: Subject) -> str:
    """Every setting has a default and a type; the settings survive JSON, and unknown or wrong ones are refused."""
    kind, name = subject.kind, subject.wanted.name
    fields = kind.Settings.model_fields
    required = [field for field, about in fields.items() if about.is_required()]
    if required:
        raise BrokenPromiseError(f"settings without a default: {', '.join(required)}; give each one a default")
    _defaults(subject)
    _refused(subject, UNKNOWN, [1], "set extra='forbid' in its model_config, as MethodSettings has it")
    for field in fields:
        _refused(subject, field, WRONG_VALUES, "give the field a type that says what it may be")
    unknown = sorted(kind.Settings.used_after_fit - fields.keys())
    if unknown:
        raise BrokenPromiseError(f"used_after_fit names {', '.join(unknown)}, which are no settings")
    try:
        subject.create()
    except Exception as error:
        raise BrokenPromiseError(
            f"create_method({name!r}, {subject.settings}) raised {describe_error(error, kind)}"
        ) from error
    return f"{len(fields)} of them" if fields else "there are none"


def _defaults(subject: Subject) -> None:
    kind = subject.kind
    try:
        method = create_method(subject.wanted.name, {}, subject.context())
        chosen = method.settings
        written = json.dumps(chosen.model_dump(mode="json"), allow_nan=False)
        read = kind.Settings.model_validate(json.loads(written))
    except Exception as error:
        raise BrokenPromiseError(
            f"the defaults alone do not make a method, or do not survive JSON: {describe_error(error, kind)}"
        ) from error
    if not isinstance(chosen, kind.Settings):
        raise BrokenPromiseError("self.settings is no instance of Settings: keep the settings that __init__ is given")
    if not hasattr(method, "context"):
        raise BrokenPromiseError("self.context is missing: keep the context that __init__ is given")
    for field in kind.Settings.model_fields:
        if getattr(read, field) != getattr(chosen, field):
            raise BrokenPromiseError(
                f"setting {field!r} is {getattr(chosen, field)!r}, but {getattr(read, field)!r} after a way through "
                "JSON: rows are compared by their settings as JSON, so use a type that JSON keeps"
            )
    if not kind.Settings.model_config.get("frozen"):
        raise BrokenPromiseError(
            "Settings can be changed after they were checked: set frozen=True in its model_config, as MethodSettings "
            "has it"
        )


def _refused(subject: Subject, field: str, values: Any, advice: str) -> None:
    """See that one of the values is refused, by an error that names the setting."""
    for value in values:
        try:
            create_method(subject.wanted.name, {field: value}, subject.context())
        except ConfigurationError as error:
            if field not in str(error):
                raise BrokenPromiseError(f"{field}={value!r} is refused without naming the setting: {error}") from error
            return
        except Exception as error:
            raise BrokenPromiseError(
                f"{field}={value!r} is not refused by the settings but raises {describe_error(error, subject.kind)}; "
                f"{advice}"
            ) from error
    what = "an unknown setting is" if field == UNKNOWN else f"setting {field!r}: a mapping, a list and a text are"
    raise BrokenPromiseError(f"{what} accepted, so a slip of the pen would go unseen: {advice}")
