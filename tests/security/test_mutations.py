"""Suites, profiles and rubrics with values replaced, nested or deleted: each is taken or refused with one line."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personalitybench.errors import PersonalityBenchError
from personalitybench.judging.base import create_judge
from personalitybench.judging.rubrics import load_rubric
from personalitybench.resources import bundled
from personalitybench.runs.plan import make_plan
from personalitybench.runs.suite import load_suite
from tests.mutations import mutant_count

EXAMPLES = mutant_count()

SUITE = {
    "name": "s",
    "models": [
        {"name": "nothing", "backend": "dummy", "args": {"x": 1}, "batch_size": 2},
        {"name": "m", "backend": "local-chat-completions", "args": {"base_url": "http://127.0.0.1:1/v1"},
         "throughput": {"prompt": 100, "new": 10, "stated": "assumed"}},
    ],
    "methods": ["none", "p2", {"name": "few_shot", "settings": {"examples": 2}}],
    "targets": ["openness:high", "openness:low"],
    "seeds": [0, 1],
    "judges": ["offline"],
    "questions": {"source": "sample", "half": "all", "limit": 1},
    "protocol": {"prompts": "project", "max_tokens": 8, "repetition_penalty": 1.1},
    "floors": False,
}  # fmt: skip
TUNED = SUITE | {
    "models": [{"name": "M", "backend": "personalitybench-hf"}],
    "methods": ["p2", {"name": "npti", "strengths": [0.5, 1.0, {"openness": 1.0}]}, {"name": "lora", "settings": {}},
                {"name": "combined", "settings": {"parts": ["p2", {"name": "npti", "settings": {}, "strength": 1.0}]}}],
}  # fmt: skip
PROFILES = [
    {"id": "j", "provider": "chat", "summary": "s", "caveat": "c",
     "settings": {"model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "K", "rubric": "project",
                  "sampling": {"temperature": 0, "max_tokens": 60, "stop": ["x"]}, "structured": True},
     "client": {"concurrency": 4, "timeout": 3.5, "attempts": 2, "batch": {}},
     "sunset": {"date": "2027-01-14", "status": "reported", "source": "s", "successors": ["offline"]}},
    {"id": "l", "provider": "local-logits", "summary": "s",
     "settings": {"model": "M", "backend": "hf", "args": {"dtype": "float32"}, "rubric": "direct", "opening": "[[",
                  "apply_chat_template": "auto", "least_mass": 0.25}, "client": {"batch_size": 2}},
    {"id": "p", "provider": "panel", "summary": "s",
     "settings": {"judges": ["offline", "openai-compatible"], "combine": "median", "at_least": 1}},
]  # fmt: skip
RUBRICS = [
    {"summary": "s", "system": "Judge.", "trait": "{{ trait }} {{ facets | join(', ') }} {{ question }} {{ answer }}",
     "fluency": "{{ answer }}", "again": "Again."},
    yaml.safe_load((bundled("judges", "rubrics") / "matrix.yaml").read_text()),
]  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(),
    st.sampled_from([
        10**30, -(10**30), 10**299, 2**63, -1, 0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -0.0, "", " ",
        "x" * 5000, "x" * 200_000, "~nosuchuser/x", "/proc/self/mem", "/dev/zero", ".", "..", "\0", "\ud800", "1e-3",
        "offline", "none", "npti", "combined", "demo", "all", "http://evil.example/v1", "http://[", "(.*)*x$",
        "{{ answer }}", "{% for a in facets %}{{ a }}{% endfor %}", "{{ 'a' * 2000000000 }}",
        "{% for a in answer %}{% for b in answer %}x{% endfor %}{% endfor %}",
    ]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4),
    max_leaves=8,
)


def repeated(value: Any, count: int) -> list[Any]:
    """Repeat a value, a long text less often: a file of some hundred kilobytes at most is written for each example."""
    return [value] * (min(count, max(2, 200_000 // len(value))) if isinstance(value, str) and value else count)


LONG = st.builds(repeated, SCALARS, st.sampled_from([2, 101, 5000]))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, originals: list[dict[str, Any]]) -> dict[str, Any]:
    """One of the originals with one to three places replaced, nested, doubled or deleted."""
    content = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(content)) or [("x",)]))
        holder: Any = content
        for key in path[:-1]:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "long", "nest", "delete", "add", "double"]))
        if change == "delete":
            del holder[path[-1]]
        elif change == "nest":
            for _ in range(draw(st.integers(1, 60))):
                holder[path[-1]] = [holder[path[-1]]]
        elif change == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            holder[path[-1]] = draw(LONG if change == "long" else VALUES)
        if not content:
            break
    return content


def plan(path: Path) -> None:
    suite = load_suite(str(path))
    make_plan(suite, path.parent / "run")


READERS: dict[str, tuple[list[dict[str, Any]], Callable[[Path], object]]] = {
    "suite": ([SUITE, TUNED], plan),
    "profile": (PROFILES, lambda path: create_judge(str(path))),
    "rubric": (RUBRICS, lambda path: load_rubric(str(path))),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_file_is_taken_or_refused_with_one_line(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals, read = READERS[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERSONALITYBENCH_TRUST_REMOTE_CODE", raising=False)
    monkeypatch.delenv("PERSONALITYBENCH_ALLOW_HOSTS", raising=False)
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "config.json").write_text("{}")

    for number, original in enumerate(originals):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.dump(original, allow_unicode=True))
        load_suite(str(path)) if kind == "suite" else read(path)  # what is mutated is valid

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(originals))
    def check(content: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder) / "f.yaml"
            path.write_bytes(yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))
            before = time.process_time()
            try:
                read(path)
            except PersonalityBenchError as error:
                assert str(error).strip()
                assert len(str(error)) < 3000, str(error)[:200]
            assert time.process_time() - before < 5

    check()
