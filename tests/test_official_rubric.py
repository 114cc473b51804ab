"""The paper's text for judges is read out of a Python file that is not run: tried with files of our own shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from personalitybench import downloads
from personalitybench.errors import DataError
from personalitybench.files import git_blob_id
from personalitybench.judging import FLUENCY, Rating, RatingRequest, official_rubric
from personalitybench.judging.rubrics import load_rubric
from personalitybench.traits import BIG_FIVE, TRAIT_NAMES

SCRIPT = '''
import not_installed_anywhere, pathlib
pathlib.Path(MARKER).write_text("this file was run")

FACTORS = {"Openness": 1}
TRAIT_FACTORS = {KEYS}

def load(path: str) -> str:
    return f"{path}"

def trait_prompt(trait: str, question: str, answer: str) -> str:
    factors = TRAIT_FACTORS[trait]
    return f"""Judge {trait} {{by}} {factors}.
{{{{ {{% if %}} {{# trait #}} 100%
Q: {question}
A: {answer} <- {trait}
"""

def fluency_prompt(answer: str) -> str:
    """Of the answer alone."""
    return f"Fluent? {answer}"

raise SystemExit("this file is to be read, not run")
'''
FACTORS = {trait.file_name: f"all of {trait.name} {{{{ x }}}}" for trait in BIG_FIVE}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def publish(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Serve a file as the release, and pin its content."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(mirror)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("PERSONALITYBENCH_MIRROR", f"http://127.0.0.1:{server.server_port}")

    def make(text: str) -> None:
        path = mirror / official_rubric._OFFICIAL_FILE[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(official_rubric, "_OFFICIAL_FILE", (official_rubric._OFFICIAL_FILE[0], git_blob_id(path)))

    yield make
    server.shutdown()
    thread.join()
    server.server_close()


def script(marker: Path, **changed: str) -> str:
    text = SCRIPT.replace("MARKER", repr(str(marker))).replace("{KEYS}", repr(FACTORS))
    for old, new in changed.values():
        assert old in text
        text = text.replace(old, new)
    return text


def test_the_text_is_read_and_nothing_is_run(publish: Callable[[str], None], tmp_path: Path, cache: Path) -> None:
    publish(script(tmp_path / "marker"))
    rubric = load_rubric("official")
    assert rubric.name == "official"
    for trait in BIG_FIVE:
        answer = "{{ trait }} {answer} [[5]] I go."
        name = trait.file_name
        assert rubric.messages(RatingRequest("Where {question}?", answer, trait.name)) == [
            {
                "role": "user",
                "content": f"Judge {name} {{by}} all of {trait.name} {{{{ x }}}}.\n{{{{ {{% if %}} {{# trait #}} 100%\n"
                f"Q: Where {{question}}?\nA: {answer} <- {name}\n",
            }
        ]
    assert rubric.messages(RatingRequest("A SECRET", "I go.", FLUENCY)) == [
        {"role": "user", "content": "Fluent? I go."}
    ]
    assert rubric.read("Short. Rating: [[4]]", "openness") == Rating(4.0, "Short. Rating:")
    assert set(rubric.turns) == {*TRAIT_NAMES, FLUENCY}
    assert not (tmp_path / "marker").exists()
    (kept,) = cache.rglob("score_with_gpt.py")
    assert downloads.JUDGE_PROMPTS.commit in kept.parts, "apart from the files of the paper's release"


def test_the_file_would_show_that_it_ran(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(SystemExit):
        exec(script(marker).replace("not_installed_anywhere, ", ""), {})  # noqa: S102 (our own text, to see it act)
    assert marker.exists()


def test_the_hash_covers_texts_and_factors(publish: Callable[[str], None], tmp_path: Path, cache: Path) -> None:
    seen = {load_rubric("project").sha256}
    changes = [
        {},
        {"a": ("Judge {trait}", "Weigh {trait}")},
        {"a": ("all of openness", "openness")},
        {"a": ("Fluent?", "Ok?")},
    ]
    for changed in changes:
        for kept in cache.rglob("score_with_gpt.py"):
            kept.unlink()
        publish(script(tmp_path / "marker", **changed))
        seen.add(load_rubric("official").sha256)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("TRAIT_FACTORS = {", "FACTORS_TRAIT = {", "no constant TRAIT_FACTORS that is a dict"),
        ("'Openness':", "'Opennes':", "TRAIT_FACTORS lacks Openness"),
        ("'all of neuroticism {{ x }}'", "3", "TRAIT_FACTORS lacks Neuroticism"),
        ("def trait_prompt", "def traits_prompt", "no function trait_prompt that returns"),
        ("def fluency_prompt", "async def fluency_prompt", "no function fluency_prompt that returns"),
        ('return f"Fluent? {answer}"', 'return "Fluent?" + answer', "no function fluency_prompt that returns"),
        ("Fluent? {answer}", "Fluent? {answer!r}", "no function fluency_prompt that returns"),
        ("Fluent? {answer}", "Fluent? {answer:>9}", "no function fluency_prompt that returns"),
        ("Fluent? {answer}", "Fluent? {answer.upper()}", "no function fluency_prompt that returns"),
        ("Fluent? {answer}", "Fluent? {answer} {question}", "no function fluency_prompt that returns"),
        ("Q: {question}", "Q: {query}", "no function trait_prompt that returns"),
        ("Q: {question}", "Q:", "no function trait_prompt that returns"),
    ],
)
def test_a_file_of_another_shape(publish: Callable[[str], None], tmp_path: Path, old: str, new: str, says: str) -> None:
    publish(script(tmp_path / "marker", change=(old, new)))
    with pytest.raises(DataError, match=says):
        load_rubric("official")


def test_altered_text_is_refused(publish: Callable[[str], None], tmp_path: Path) -> None:
    publish(script(tmp_path / "marker"))
    served = tmp_path / "mirror" / official_rubric._OFFICIAL_FILE[0]
    served.write_text(served.read_text() + "#")
    with pytest.raises(DataError, match="is not the pinned content"):
        load_rubric("official")
