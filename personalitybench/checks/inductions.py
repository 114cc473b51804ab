"""What ``induce`` promises: plain data, whole prompts, a strength that acts, needs that are declared."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from personalitybench.backends.needs import CAPABILITIES, check_needs
from personalitybench.checks.results import BrokenPromiseError, NotCheckedError, Note, describe_error
from personalitybench.checks.subject import Subject, show_place
from personalitybench.errors import ConfigurationError, NeedsNotMetError
from personalitybench.methods import Induction, create_method
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target

_PLACEHOLDER = re.compile(r"\{\w*\}")
_PLAIN = (str, int, float, bool, type(None))


def serialisable(subject: Subject) -> str:
    """An induction is plain data that says which method, target and strength it is of."""
    found = subject.induce(subject.ready(), subject.asked)
    for place, induction in found.items():
        where = show_place(place)
        if not isinstance(induction, Induction):
            raise BrokenPromiseError(f"induce returned a {type(induction).__name__}, not an Induction ({where})")
        _plain(induction, where)
        if induction.method != subject.wanted.name:
            raise BrokenPromiseError(
                f"the induction's method is {induction.method!r}: it must be the registered name, "
                f"{subject.wanted.name!r} ({where})"
            )
        if str(induction.target) != place[0]:
            raise BrokenPromiseError(f"the induction's target is {induction.target}, asked for {place[0]} ({where})")
        if induction.strength != subject.strength:
            raise BrokenPromiseError(
                f"the induction's strength is {induction.strength}, asked for {subject.strength} ({where})"
            )
    return f"{len(found)} inductions"


def _plain(induction: Induction, where: str) -> None:
    for field in dataclasses.fields(induction):
        value = getattr(induction, field.name)
        if field.name != "target" and not isinstance(value, _PLAIN):
            raise BrokenPromiseError(
                f"the induction's {field.name} is a {type(value).__name__}, which is no plain data: write a text or a "
                f"number, str(path) for a path ({where})"
            )
    try:
        written = json.loads(json.dumps(induction.to_json(), allow_nan=False))
        read = Induction(**{**written, "target": Target.parse(written["target"])})
    except (TypeError, ValueError, ConfigurationError) as error:
        raise BrokenPromiseError(
            f"the induction cannot be written as JSON and read again: {error} ({where})"
        ) from error
    if read != induction or hash(read) != hash(induction):
        raise BrokenPromiseError(f"the induction is another one after a way through JSON ({where})")


def question(subject: Subject) -> str:
    """A prompt holds the question exactly once, as it is, and no placeholder is left unfilled."""
    asked = [*subject.asked, *subject.with_braces]
    method = subject.ready()
    for target, one in asked:
        (induction,) = subject.induce(method, [(target, one)]).values()
        where = show_place((str(target), one.id))
        try:
            prompt = induction.render(one.question)
        except Exception as error:
            raise BrokenPromiseError(
                f"the induction cannot be rendered: {describe_error(error, subject.kind)} ({where})"
            ) from error
        times = prompt.count(one.question)
        if times != 1:
            raise BrokenPromiseError(
                f"the prompt holds the question {times} times instead of once: the template needs {{question}} in one "
                f"place, and the question may not be written into it ({where}, the question {one.question[:60]!r})"
            )
        rest = prompt.replace(one.question, "").replace(induction.description or "\0", "")
        left = _PLACEHOLDER.search(rest)
        if left:
            raise BrokenPromiseError(
                f"the prompt has {left[0]} left in it: only {{question}}, {{personality}} and {{examples}} are filled "
                f"in, the latter two with the induction's description ({where})"
            )
    return f"{len(asked)} prompts"


def poles(subject: Subject) -> str:
    """The two poles of a trait get different requests."""
    method = subject.ready()
    same = []
    for target, one in subject.asked:
        if target.opposite in TARGETS[: TARGETS.index(target)]:
            continue
        (own,) = subject.induce(method, [(target, one)]).values()
        (other,) = subject.induce(method, [(target.opposite, one)]).values()
        if _acts(own, one.question) == _acts(other, one.question):
            same.append(target.trait)
    traits = list(dict.fromkeys(same))
    which = "every trait" if len(traits) == len(TRAIT_NAMES) else ", ".join(traits)
    if traits:
        return Note(f"both poles of {which} get the same request: right for a baseline that induces nothing")
    return "they do, for all five traits"


def _acts(induction: Induction, text: str) -> tuple[str, Any]:
    """What a model gets: the prompt, and what the backend does besides."""
    return induction.render(text), induction.extra_args


def strength(subject: Subject) -> str:
    """A strength changes what is asked of the model, or the method says that it has none and refuses one."""
    return _has_none(subject) if subject.strength is None else _scales(subject, subject.strength)


def _has_none(subject: Subject) -> str:
    try:
        create_method(subject.wanted.name, subject.settings, subject.context(), 1.0)
    except ConfigurationError:
        pass
    else:
        raise BrokenPromiseError("has_strength is False, but a strength is not refused")
    target, one = subject.asked[0]
    method = subject.ready()
    try:
        low, high = (_acts(method.induce(target, value, one), one.question) for value in (1.0, 2.0))
    except Exception:  # noqa: BLE001 (it refuses a strength in its own way)
        return "it has none, and refuses one"
    if low != high and not subject.repeats:
        raise NotCheckedError("the request is another each time: see deterministic")
    if low != high:
        raise BrokenPromiseError("the strength changes the request although has_strength is False: set it to True")
    return "it has none"


def _scales(subject: Subject, own: float) -> str:
    other = 2 * own if own else 1.0
    asked = subject.asked[:2]
    method = subject.ready()
    low, high = (list(subject.induce(method, asked, value).values()) for value in (own, other))
    if all(_acts(a, q.question) == _acts(b, q.question) for a, b, (_, q) in zip(low, high, asked, strict=True)):
        raise BrokenPromiseError(
            f"strengths {own:g} and {other:g} ask the same of the model although has_strength is True: use the "
            "strength that induce is given, or set has_strength to False"
        )
    target, one = asked[0]
    try:
        without = method.induce(target, None, one)
        asks = without.extra_args
    except ConfigurationError as error:
        return f"{own:g} and {other:g} differ; without one it says: {error}"
    except Exception as error:
        raise BrokenPromiseError(
            f"without a strength, induce raised {describe_error(error, subject.kind)}: have a default, or raise a "
            "ConfigurationError that says what to write"
        ) from error
    if "intervention" in asks and asks.get("strength") is None:
        raise BrokenPromiseError(
            "without a strength, the intervention has none, which every backend refuses: have a default, or raise a "
            "ConfigurationError that says what to write"
        )
    return f"{own:g} and {other:g} differ; none is fine, too"


def needs(subject: Subject) -> str:
    """The needs are what inductions ask of a backend, no more and no less; what they name is there."""
    declared = subject.needs
    if not declared <= subject.kind.needs:
        raise BrokenPromiseError("an instance needs more than its class declares: 'needs' of the class holds all")
    found = subject.induce(subject.ready(), subject.asked)
    used: set[str] = set()
    for place, induction in found.items():
        asks = induction.extra_args
        for need in ("adapter", "intervention"):
            if need not in asks:
                continue
            used.add(need)
            if need not in declared:
                raise BrokenPromiseError(
                    f"the induction asks for an {need}, which 'needs' does not declare: a backend without it would "
                    f"answer as if nothing were asked ({show_place(place)})"
                )
            if not Path(asks[need]).is_absolute() or not Path(asks[need]).is_dir():
                raise BrokenPromiseError(
                    f"the induction's {need} is {asks[need]!r}, which is not the full path of a folder that is there "
                    f"({show_place(place)})"
                )
    unused = sorted(declared - used)
    if unused:
        raise BrokenPromiseError(
            f"'needs' declares {' and '.join(unused)}, which no induction asks for: backends that could serve the "
            "method would be refused"
        )
    if not declared:
        return "none, and nothing is asked for"
    try:
        check_needs(subject.wanted.name, declared, frozenset(), "dummy")
    except NeedsNotMetError:
        able = sorted(name for name, can in CAPABILITIES.items() if declared <= can)
        return f"{' and '.join(sorted(declared))}, which {', '.join(able) or 'no backend'} can do"
    raise NotCheckedError("a backend that can do nothing was not refused")
