"""Wordings: filling them in, and reading the paper's out of Python files without running those."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench import prompts
from personalitybench.errors import ConfigurationError, DataError
from personalitybench.files import git_blob_id
from personalitybench.prompts import fill, load_wording, read_constants
from personalitybench.traits import TARGETS, Target

HOSTILE = st.text(alphabet=st.sampled_from("{}ab \n%$\\")) | st.sampled_from(
    ["{question}", "{personality}", "{examples}", "{{question}}", "{0}", "{}", r"\1 \g<0>", "%s"]
)


@given(question=HOSTILE, personality=HOSTILE)
def test_what_is_filled_in_is_never_read_again(question: str, personality: str) -> None:
    template = "[{personality}] {other} {} {{x}} [{question}] [{personality}]"
    filled = fill(template, question=question, personality=personality)
    assert filled == f"[{personality}] {{other}} {{}} {{{{x}}}} [{question}] [{personality}]"


def test_a_placeholder_without_a_value_stays() -> None:
    assert fill("{examples}: {question}", examples="one") == "one: {question}"


# The paper's wording, in files of our own that do what the paper's do: import, parse arguments, load a model.

PLAIN = """import not_installed_anywhere
TEMPLATE = '''
Be real. {question}
'''
raise SystemExit("this file is to be read, not run")
"""
PROMPTING = """
import argparse, pathlib
pathlib.Path(MARKER).write_text("this file was run")
args = argparse.ArgumentParser().parse_args()
TEMPLATE_sp = "Be {personality} person. {question}"
TEMPLATE_p2 = "You. {personality}. {question}"
model = load(args.model)
personality_adj = ADJECTIVES
for key in personality_adj:
    print(TEMPLATE_sp.format(personality=key, question=input()))
"""
IDENTIFY = 'import torch\nTEMPLATE = ("Forget. "\n "{personality} {question}")\ntorch.empty(1 << 60)\n'


class Release(ThreadingHTTPServer):
    """A mirror of a made-up release."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: Release

    def do_GET(self) -> None:
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is made when the release's code runs."""
    return tmp_path / "marker"


@pytest.fixture
def release(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    server = Release()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("PERSONALITYBENCH_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    prompts._official.cache_clear()
    yield server
    prompts._official.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def publish(
    release: Release, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str]], None]:
    """Serve three files and pin their content."""

    def make(changed: dict[str, str]) -> None:
        adjectives = {target.file_key: f"a very {target.adjective.split()[1]}" for target in TARGETS}
        files = {
            "plain": PLAIN,
            "prompting": PROMPTING.replace("MARKER", repr(str(marker))).replace("ADJECTIVES", repr(adjectives)),
            "identify": IDENTIFY,
        } | changed
        pinned = {}
        for key, text in files.items():
            path = tmp_path / f"{key}.py"
            path.write_text(text, encoding="utf-8")
            where = f"NPTI/code/{key}.py"
            release.files[where] = path.read_bytes()
            pinned[key] = (where, git_blob_id(path))
        monkeypatch.setattr(prompts, "_OFFICIAL_FILES", pinned)

    return make


def test_the_official_wording_is_read_and_nothing_is_run(
    publish: Callable[[dict[str, str]], None], marker: Path, release: Release
) -> None:
    publish({})
    wording = load_wording("official")
    assert wording.name == "official"
    assert wording.plain == "\nBe real. {question}\n"
    assert wording.simple == "Be {personality} person. {question}"
    assert wording.p2 == "You. {personality}. {question}"
    assert wording.identify == "Forget. {personality} {question}"
    assert wording.few_shot == load_wording("project").few_shot, "the paper has no few-shot template"
    assert wording.adjectives[Target.parse("neuroticism:low")] == "a very calm"
    assert list(wording.adjectives) == list(TARGETS)
    assert not marker.exists()
    assert wording.sha256 != load_wording("project").sha256
    release.files.clear()
    prompts._official.cache_clear()
    assert load_wording("official") == wording, "from the cache on disk"


def test_the_marker_would_show_that_the_code_ran(tmp_path: Path, marker: Path) -> None:
    with pytest.raises(SystemExit):
        exec(compile(PLAIN.partition("\n")[2], "plain.py", "exec"), {})  # noqa: S102 (our own text, to see it act)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prompting.py", "--surely-unknown"])
        exec(compile(PROMPTING, "prompting.py", "exec"), {"MARKER": str(marker), "ADJECTIVES": {}})  # noqa: S102
    assert marker.exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"plain": PLAIN.replace("TEMPLATE", "TEXT")}, r"plain\.py has no constant TEMPLATE that is a str"),
        ({"identify": "TEMPLATE = 5\n"}, r"identify\.py has no constant TEMPLATE that is a str"),
        ({"identify": "TEMPLATE = make()\n"}, r"identify\.py has no constant TEMPLATE that is a str"),
        ({"prompting": "TEMPLATE_sp = TEMPLATE_p2 = ''\n"}, r"prompting\.py has no constant"),
        ({"prompting": "TEMPLATE_sp = ''\nTEMPLATE_p2 = ''\npersonality_adj = []\n"}, "personality_adj that is a dict"),
        ({"prompting": "TEMPLATE_sp = ''\nTEMPLATE_p2 = ''\npersonality_adj = {}\n"}, "personality_adj"),
    ],
    ids=["none", "number", "call", "chained", "list", "no-adjective"],
)
def test_a_file_without_the_constant(
    publish: Callable[[dict[str, str]], None], changed: dict[str, str], says: str
) -> None:
    publish(changed)
    with pytest.raises(DataError, match=says):
        load_wording("official")


def test_a_failed_load_is_tried_again(publish: Callable[[dict[str, str]], None], release: Release) -> None:
    publish({})
    body = release.files.pop("NPTI/code/plain.py")
    with pytest.raises(DataError, match="answered 404"):
        load_wording("official")
    release.files["NPTI/code/plain.py"] = body
    assert load_wording("official").plain == "\nBe real. {question}\n"


def test_altered_wording_is_refused(publish: Callable[[dict[str, str]], None], release: Release) -> None:
    publish({})
    release.files["NPTI/code/prompting.py"] += b"#"
    with pytest.raises(DataError, match="is not the pinned content"):
        load_wording("official")


def test_constants_are_literals_at_the_top_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "constants.py"
    path.write_text(
        "A = 'one' 'two'\nB = {'k': [1, (2.5, None)]}\nC = -3\n"
        "D = A.upper()\nE = f'{A}'\nF, G = 1, 2\nH.x = 1\nif True:\n    I = 1\ndef f():\n    J = 1\n"
        "K = __import__('os').getpid()\n# Ü\nL = 'Ünïcödé'\n",
        encoding="utf-8",
    )
    assert read_constants(path) == {"A": "onetwo", "B": {"k": [1, (2.5, None)]}, "C": -3, "L": "Ünïcödé"}


def test_an_unknown_wording_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="unknown wording of prompts 'projct': did you mean 'project'"):
        load_wording("projct")


@pytest.mark.parametrize("part", ["name", "plain", "simple", "p2", "few_shot", "identify"])
def test_the_hash_of_a_wording_covers_every_part(part: str) -> None:
    wording = load_wording("project")
    changed: dict[str, Any] = {part: "other"}
    assert replace(wording, **changed).sha256 != wording.sha256
    assert replace(wording).sha256 == wording.sha256


def test_the_hash_of_a_wording_covers_the_adjectives() -> None:
    wording = load_wording("project")
    changed = {**wording.adjectives, TARGETS[3]: "an unreliable"}
    assert replace(wording, adjectives=changed).sha256 != wording.sha256
    reordered = {target: wording.adjectives[target] for target in reversed(TARGETS)}
    assert replace(wording, adjectives=reordered).sha256 == wording.sha256


def test_identification_names_the_adjective_where_the_wording_has_a_place_for_it() -> None:
    wording = load_wording("project")
    target = TARGETS[1]
    assert f"as {wording.adjectives[target]} person:" in wording.identify_as(target)
    assert "{personality}" in wording.identify_as(target)
    assert replace(wording, identify="{personality} {question}").identify_as(target) == "{personality} {question}"


@pytest.mark.parametrize(
    ("part", "places"),
    [
        ("plain", set()),
        ("simple", {"{personality}"}),
        ("p2", {"{personality}"}),
        ("identify", {"{personality}", "{adjective}"}),
        ("few_shot", {"{examples}"}),
    ],
)
def test_the_projects_templates_have_their_places_and_no_other(part: str, places: set[str]) -> None:
    template = getattr(load_wording("project"), part)
    assert template.count("{question}") == 1
    assert set(re.findall(r"\{\w*\}", template)) == {"{question}"} | places
    filled = fill(template, personality="<P>", question="<Q>", examples="<E>", adjective="<A>")
    assert "{" not in filled
    assert "}" not in filled
    assert "no more than 300 words" in filled, "the protocol asks for it, and the limit of tokens relies on it"
