"""YAML and JSON from outside: limits before anything is validated, and one line that says what and where."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.backends.adapter_files import read_config
from personalitybench.errors import ConfigurationError, PersonalityBenchError, StorageError
from personalitybench.files import JsonLines, read_json
from personalitybench.judging.base import load_profile
from personalitybench.judging.chat_client import ChatSettings
from personalitybench.judging.chat_judge import ChatJudge
from personalitybench.judging.prices import load_prices
from personalitybench.judging.rubrics import load_rubric
from personalitybench.leaderboard.render import read_board
from personalitybench.outside_files import UnreadableError, dump_yaml, parse_json, parse_yaml
from personalitybench.runs.suite import load_suite
from personalitybench.validation import parse_pairs
from tests.security.terminal import one_line, run_command

SUITE = "name: s\nmodels: [{name: m, backend: dummy%s}]\nmethods: [none]\n"
BOMB = "x: &a0 [a, a]\n" + "".join(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

HOSTILE_YAML = {
    "twice": ("methods: [none]\nname: s\nmethods: [p2]\n", "has the key 'methods' twice, on lines 1 and 3"),
    "twice beneath": ("settings:\n  t: 0\n  u: 1\n  t: 1\n", "has the key 't' twice, on lines 2 and 4"),
    "twice under two spellings": ("settings: {yes: 0,\n  true: 1}\n", "has the key 'true' twice, on lines 1 and 2"),
    "merged twice": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "has the key '<<' twice, on lines 3 and 4"),
    "aliases": (BOMB, "aliases written out"),
    "alias of itself": ("args: &a {x: *a}\n", "has an alias of what it stands in (line 1"),
    "brackets": ("x: " + "[" * 300, "nested more than 50 deep"),
    "more brackets": ("x: " + "[" * 5000 + "]" * 5000, "nest"),
    "digits": ("x: " + "1" * 5000, "a number of 5000 digits (line 1"),
    "names": ("models: [" + "m, " * 150_000 + "m]", "has more than 20,000 keys and values"),
    "size": ("x: " + "a" * 1_100_000, "is larger than 1 MB"),
    "not finite": ("x: {y: .nan}", "'x.y' is nan, which is no finite number"),
    "no YAML": ("x: [1, 2", "is not YAML: line"),
    "no mapping": ("- 1\n", "is not a mapping"),
    "two documents": ("a: 1\n---\nb: 2\n", "is not YAML"),
    "an object": ("!!python/object/apply:os.system ['true']", "is not YAML"),
    "unhashable key": ("? [1]\n: 2\n", "is not YAML"),
    "not UTF-8": ("x: \udcff", "is not UTF-8"),
}
READERS = {
    "suite": lambda path: load_suite(str(path)),
    "profile": lambda path: load_profile(str(path)),
    "rubric": lambda path: load_rubric(str(path)),
    "prices": load_prices,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE_YAML)
def test_hostile_yaml_is_one_line_in_little_time(case: str, reader: str, tmp_path: Path) -> None:
    text, says = HOSTILE_YAML[case]
    path = tmp_path / "f.yaml"
    path.write_bytes(os.fsencode(text) if case == "not UTF-8" else text.encode())
    started = time.monotonic()
    with pytest.raises(ConfigurationError) as refused:
        READERS[reader](path)
    assert time.monotonic() - started < 5
    assert says in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_command_ends_with_one_line(tmp_path: Path) -> None:
    for case in ("aliases", "twice", "more brackets"):
        (tmp_path / "s.yaml").write_text(HOSTILE_YAML[case][0])
        assert "s.yaml" in one_line(run_command("run", "s.yaml", "--dry-run", cwd=tmp_path))


def test_yaml_that_stays_as_it_was() -> None:
    text = "a: &x {y: 1.5, z: [null, true, 'text']}\nb: {<<: *x, y: 2}\nc: 2024-08-06\n"
    found = parse_yaml(text)
    assert found["b"] == {"y": 2, "z": [None, True, "text"]}
    assert str(found["c"]) == "2024-08-06"
    assert parse_yaml("\ufeffa: 1".lstrip("\ufeff")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-1", 0.1), ("1e3", 1000.0), ("1.5e3", 1500.0), (".5E+2", 50.0), ("-2e-3", -0.002), ("1.0e-3", 0.001)],
)
def test_an_exponent_makes_a_number(text: str, number: float, tmp_path: Path) -> None:
    assert parse_yaml(f"x: [{text}, '{text}']") == {"x": [number, text]}
    assert parse_pairs([f"x={text}"], "--set") == {"x": number}
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nmodels: [m]\nmethods: [{{name: npti, strengths: [{text}]}}]\n")
    assert load_suite(str(path)).methods[0].strengths == [number]
    assert chat_judge(tmp_path, f"sampling: {{temperature: {text}}}")._settings.sampling == {"temperature": number}


@pytest.mark.parametrize("text", ["1e", "e3", "1e3x", "v1e3", "1e3.5", "0xe3z", "1 e3"])
def test_other_text_with_an_e_stays_text(text: str) -> None:
    assert parse_yaml(f"x: {text}") == {"x": text}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.from_regex(r"[-+.0-9eE_]{0,8}", fullmatch=True),
        lambda parts: st.lists(parts) | st.dictionaries(st.text("abe1", max_size=4), parts),
    )
)
def test_what_is_written_is_read_as_the_same(value: object) -> None:
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize("reader", ["suite", "profile", "rubric"])
def test_a_byte_order_mark_is_no_part_of_a_file(reader: str, tmp_path: Path) -> None:
    texts = {
        "suite": "name: s\nmodels: [m]\nmethods: [none]\n",
        "profile": "id: j\nprovider: chat\nsummary: s\nsettings: {model: m}\n",
        "rubric": "summary: s\nsystem: ''\ntrait: '{{ answer }}'\nfluency: '{{ answer }}'\n",
    }
    path = tmp_path / "f.yaml"
    path.write_text("\ufeff" + texts[reader], encoding="utf-8")
    READERS[reader](path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(StorageError, match="no regular file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(("given", "says"), [("x=[[[[" + "[" * 100, "nested"), ("x={a: 1, a: 2}", "twice")])
def test_pairs_are_read_with_the_same_limits(given: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_pairs([given], "--set")


@pytest.mark.parametrize(
    ("value", "says"),
    [("2024-08-06", "'x.y' is a value of type date"), ("!!binary aGk=", "type bytes"), ("!!set {a}", "type set")],
)
def test_values_that_json_does_not_have_are_refused_with_their_key(value: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    for text, read in (
        (SUITE % f", args: {{x: {{y: {value}}}}}", "suite"),
        (f"id: j\nprovider: chat\nsummary: s\nsettings: {{x: {{y: {value}}}}}\n", "profile"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="JSON does not have") as refused:
            READERS[read](path)
        assert says in str(refused.value)


def chat_judge(tmp_path: Path, settings: str) -> ChatJudge:
    path = tmp_path / "j.yaml"
    path.write_text(f"id: j\nprovider: chat\nsummary: s\nsettings: {{model: m, {settings}}}\n")
    return ChatJudge(load_profile(str(path)))


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ("max_tokens: lots", "'max_tokens' is a whole number, not 'lots'"),
        ("max_tokens: 1.5", "'max_tokens' is a whole number, not 1.5"),
        ("temperature: '1e-3'", "'temperature' is a number, not '1e-3': write it without quotes"),
        ("temperature: .nan", "no finite number"),
        ("metadata: {experiment: 2024-08-06}", "'sampling.metadata.experiment' is a value of type date"),
    ],
)
def test_sampling_is_checked_when_the_profile_is_read(sampling: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        chat_judge(tmp_path, f"sampling: {{{sampling}}}")
    assert says in str(refused.value)


def test_null_in_sampling_is_not_given(tmp_path: Path) -> None:
    judge = chat_judge(tmp_path, "sampling: {max_tokens: null, temperature: 0}")
    assert judge._client.sampling == {"temperature": 0}
    assert judge._most_written("fluency") > 0


def test_a_query_of_an_address_goes_along_with_every_request() -> None:
    settings = ChatSettings("m", "http://127.0.0.1:1/openai/deployments/m?api-version=2024-02-01")
    assert settings.address == "http://127.0.0.1:1/openai/deployments/m"
    assert settings.query == {"api-version": "2024-02-01"}
    assert settings.server().address == settings.address


HOSTILE_JSON = {
    "brackets": ("[" * 100_000, "nested"),
    "closed brackets": ("[" * 200 + "]" * 200, "nested more than 50 deep"),
    "digits": ('{"n": ' + "1" * 4001 + "}", "a number of 4001 digits"),
    "not finite": ('{"n": NaN}', "NaN is no number of JSON"),
    "half a pair": (r'{"name": "a\ud800"}', "half of a surrogate pair"),
    "cut off": ('{"n": [1, 2', "is not JSON"),
    "empty": ("", "is not JSON"),
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_hostile_json_is_one_line(case: str, tmp_path: Path) -> None:
    text, says = HOSTILE_JSON[case]
    path = tmp_path / "board.json"
    path.write_text(text)
    for read in (read_json, read_board):
        with pytest.raises(PersonalityBenchError, match=r"board\.json") as refused:
            read(path)
        assert says in str(refused.value)


def test_one_hostile_record_of_a_fit_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "fits" / "evil-123"
    folder.mkdir(parents=True)
    (folder / "fit.json").write_text("[" * 100_000)
    done = run_command("artifacts", "list", cwd=tmp_path, PERSONALITYBENCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "evil-123" in done.stdout
    assert "damaged" in done.stdout


def test_json_that_stays_as_it_was(tmp_path: Path) -> None:
    assert parse_json(r'{"a": "\ud83d\ude00", "n": 18446744073709551615, "x": [0.12345678901234567890123]}') == {
        "a": "😀",
        "n": 18446744073709551615,
        "x": [0.12345678901234568],
    }
    (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "b.json") == {"a": 1}
    (tmp_path / "l.jsonl").write_text('{"answer": "\\ud83d", "n": NaN}\n')
    assert next(iter(JsonLines(tmp_path / "l.jsonl").read()))["answer"] == "\ud83d"
    with pytest.raises(UnreadableError):
        parse_json("NaN")


def test_a_line_of_brackets_is_an_altered_file(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(StorageError, match=r"l\.jsonl:2"):
        list(JsonLines(tmp_path / "l.jsonl").read())


def adapter(folder: Path, **config: object) -> Path:
    known = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": "(.*)*(.*)*(.*)*x$"}, "may take too long"),
        ({"target_modules": "(a+)+$"}, "may take too long"),
        ({"target_modules": "(.|.)" * 40 + "x"}, "may take too long"),
        ({"target_modules": ".?" * 40 + "x"}, "may take too long"),
        ({"target_modules": ".*" * 10 + "x"}, "may take too long"),
        ({"target_modules": "a" * 2000}, "longer than 1000"),
        ({"exclude_modules": "(a|a)*$"}, "may take too long"),
        ({"layers_pattern": "("}, "no regular expression"),
        ({"layers_pattern": ["h", "(x+)+"]}, "may take too long"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"alpha_pattern": {"(.*)*(.*)*x": 2}}, "may take too long"),
    ],
    ids=str,
)
def test_patterns_of_an_adapter_never_run_long(config: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        read_config(adapter(tmp_path, **config))
    assert says in str(refused.value)
    assert next(iter(config)) in str(refused.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "all-linear",
        r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        r"^model\.layers\.\d+\.(?:self_attn|mlp)\.(?:q|k|v|o|gate|up|down)_proj$",
        r"^(?!.*vision).*\.[qkv]_proj",
        r".*layers\.(1|2)\d?\..*proj",
    ],
)
def test_usual_patterns_of_an_adapter_are_taken(pattern: str, tmp_path: Path) -> None:
    assert read_config(adapter(tmp_path, target_modules=pattern)).target_modules == pattern


PIECES = st.sampled_from(
    ["&a ", "*a ", "[", "]", "{", "}", ": ", "- ", "\n", "\n  ", "? ", "'", '"', "<<: ", "!!set ", "!!timestamp ",
     "!!bool ", "!!int ", "!!float ", "!!binary ", "!!omap ", "1e3", ".nan", "2020-13-45", "name", "methods", "---\n",
     "%", "|\n", "\ud800"]
)  # fmt: skip


@settings(max_examples=300, deadline=5000)
@given(st.lists(PIECES | st.text(max_size=5), max_size=60).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (parse_yaml, parse_json):
        try:
            read(text)
        except UnreadableError as error:
            assert str(error)
