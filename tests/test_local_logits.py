"""A judge by probabilities: equal to a softmax by hand, one pass an answer, no rating where there is none to see."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError, JudgeError, ModelError
from personalitybench.judging import FLUENCY, Rating, RatingRequest, Unrated, rate_all
from personalitybench.judging.attacks import hostile_texts
from personalitybench.judging.base import JudgeProfile, load_profile
from personalitybench.judging.local_logits import RATINGS, LocalLogitsJudge, expected_rating
from personalitybench.judging.rubrics import load_rubric

QUESTION = "A friend asks you to a party. What do you do?"
ITEMS = [
    RatingRequest(QUESTION, "I would go, and be the last to leave.", "extraversion"),
    RatingRequest(QUESTION, "I would rather read a book at home. " * 5, "extraversion"),
    RatingRequest(QUESTION, "I would go, and be the last to leave.", FLUENCY),
]


HOSTILE = hostile_texts()


def make(model: Path | str, client: dict[str, Any] | None = None, **settings: Any) -> LocalLogitsJudge:
    asked = {"model": str(model), "args": {"dtype": "float32"}, "least_mass": 0.0, **settings}
    profile = {"id": "logits", "provider": "local-logits", "summary": "for tests", "settings": asked}
    return LocalLogitsJudge(JudgeProfile.model_validate(profile | {"client": {"device": "cpu", **(client or {})}}))


def ratings(judge: LocalLogitsJudge, items: list[RatingRequest]) -> list[Rating]:
    verdicts = rate_all(judge, items)
    assert all(isinstance(verdict, Rating) for verdict in verdicts), verdicts
    return [verdict for verdict in verdicts if isinstance(verdict, Rating)]


# Against the model itself


@pytest.mark.model
def test_it_is_the_softmax_over_the_five_ratings(demo_model: Path, tmp_path: Path) -> None:
    """The bundled profile on the real demo model, with a short rubric, against transformers by hand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "short.yaml"
    asking = "Rate it from [[1]] to [[5]]: {{ answer }}"
    path.write_text(json.dumps({"summary": "short", "system": "", "trait": asking, "fluency": asking}))
    bundled = load_profile("local-logits")
    changes = {"settings": bundled.settings | {"rubric": str(path), "least_mass": 0.0}}
    found = ratings(LocalLogitsJudge(bundled.model_copy(update=changes)), ITEMS[:2])
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    digits = [tokenizer.encode(digit, add_special_tokens=False)[0] for digit in RATINGS]
    for verdict, item in zip(found, ITEMS, strict=False):
        messages = load_rubric(str(path)).messages(item)
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "[["
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])).logits[0, -1]
        five = torch.softmax(logits, dim=-1)[digits]
        assert verdict.basis["mass"] == pytest.approx(five.sum().item(), abs=1e-3)
        shares = five / five.sum()
        assert verdict.basis["probabilities"] == pytest.approx(shares.tolist(), abs=1e-3)
        assert verdict.value == pytest.approx(sum((n + 1) * share for n, share in enumerate(shares.tolist())), abs=1e-3)
        assert "explanation" not in verdict.to_json()
    assert found[0].value != found[1].value


@pytest.mark.model
def test_an_answer_is_one_pass_and_the_same_one_none(tiny_model: Path) -> None:
    judge = make(tiny_model)
    reported: list[int] = []
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    ratings(judge, ITEMS[:1])
    judge._reader._model.model.register_forward_hook(count)
    verdicts = rate_all(judge, [*ITEMS, RatingRequest("?", " …", FLUENCY)], reported.append)
    assert passes == len(ITEMS), "all five ratings are read off one pass"
    assert verdicts[-1] == Unrated("empty_answer", "the answer has no word")
    assert reported == [1, 1, 1, 1]
    batched = make(tiny_model, {"batch_size": 8})
    batched._reader._model.model.register_forward_hook(count)
    passes = 0
    assert len({verdict.value for verdict in ratings(batched, [ITEMS[0]] * 3 + [ITEMS[1]])}) == 2
    assert passes == 1


@pytest.mark.model
def test_neighbours_do_not_matter(tiny_model: Path) -> None:
    alone, together = ratings(make(tiny_model), ITEMS), ratings(make(tiny_model, {"batch_size": 3}), ITEMS)
    for one, other in zip(alone, together, strict=True):
        assert one.value == pytest.approx(other.value, abs=2e-4)
        assert one.basis["probabilities"] == pytest.approx(other.basis["probabilities"], abs=2e-4)
    assert len({verdict.value for verdict in alone}) == 3
    assert make(tiny_model, {"batch_size": 32}).at_a_time == 32


@pytest.mark.model
def test_what_the_model_does_not_say_is_no_rating(tiny_model: Path) -> None:
    (verdict,) = rate_all(make(tiny_model, least_mass=0.25), ITEMS[:1])  # random weights: about 5 tokens of 49,152
    assert isinstance(verdict, Unrated)
    assert verdict.reason == "no-mass"
    assert verdict.detail.endswith("of the probability on 1 to 5, 0.25 is needed")
    assert 0 < float(verdict.detail.split()[0]) < 0.01


@pytest.mark.model
def test_a_prompt_that_would_be_cut_is_no_rating(tiny_model: Path) -> None:
    long = RatingRequest(QUESTION, "I go home. " * 700, "openness")
    first, second, third = rate_all(make(tiny_model, {"batch_size": 3}), [ITEMS[0], long, ITEMS[1]])
    assert isinstance(first, Rating)
    assert isinstance(third, Rating)
    assert isinstance(second, Unrated)
    assert second.reason == "too-long"
    assert "the model reads 2048" in second.detail


@pytest.mark.model
@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_cannot_end_its_turn(name: str, tiny_reader: Any) -> None:
    def marks(answer: str) -> int:
        item = tiny_reader.disarm(RatingRequest(QUESTION, answer, "openness"))
        tokens = tiny_reader._model.tok_encode(tiny_reader.context(load_rubric("direct").messages(item)))
        return sum(token in special for token in tokens)

    special = set(tiny_reader._tokenizer.all_special_ids)
    assert marks(HOSTILE[name]) == marks("I would go.") > 0


@pytest.fixture(scope="module")
def tiny_reader(tiny_model: Path) -> Any:
    return make(tiny_model)._reader


@pytest.mark.model
def test_an_answer_without_such_marks_stays_as_it_is(tiny_reader: Any) -> None:
    for answer in ("I go. [[5]] <b>now</b> |im_end|", "a < b > c", "\t\n  spaces  "):
        assert tiny_reader.disarm(RatingRequest("?", answer, FLUENCY)).answer == answer
    assert tiny_reader.disarm(RatingRequest("?", "<|im_end|>", FLUENCY)).answer == "< |im_end|>"


# Templates and tokenizers


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with another chat template (None: with none)."""

    def copy(template: str | None) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return copy


@pytest.mark.model
def test_a_template_without_a_system_message_loses_no_instruction(changed: Callable[..., Path]) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<model>"
    )
    system, user = load_rubric("direct").messages(ITEMS[0])
    text = make(changed(template))._reader.context([system, user])
    assert text == f"<user>{system['content']}\n\n{user['content']}<model>[["


@pytest.mark.model
@pytest.mark.parametrize(("template", "settings"), [(None, {}), ("chat", {"apply_chat_template": False})])
def test_a_base_model_gets_plain_text(
    changed: Callable[..., Path], template: str | None, settings: dict[str, Any]
) -> None:
    system, user = load_rubric("direct").messages(ITEMS[0])
    judge = make(changed(template), **settings)
    assert judge._reader.context([system, user]) == f"{system['content']}\n\n{user['content']}\n\n[["
    assert ratings(judge, ITEMS[:1])


@pytest.mark.model
def test_a_tokenizer_that_joins_is_told(changed: Callable[..., Path]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    folder = changed(None)
    unknown, end = "[UNK]", "[EOS]"
    words = Tokenizer(WordLevel({unknown: 0, end: 1, "[[": 2, "[[1": 3, "[[2": 4}, unk_token=unknown))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown, eos_token=end).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"joins '\[\[' with the rating after it: set another 'opening'"):
        rate_all(make(folder), ITEMS[:1])


# What it is, and what it refuses


@pytest.mark.model
def test_the_fingerprint_is_of_weights_template_and_rubric(tiny_model: Path, changed: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    usual = make(tiny_model)
    seen = {usual.rubric_sha256}
    folder = changed((tiny_model / "chat_template.jinja").read_text())
    assert make(folder).rubric_sha256 == usual.rubric_sha256, "where it lies does not matter"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(make(folder).rubric_sha256)
    weights = load_file(folder / "model.safetensors")
    name = min(weights)
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(make(folder).rubric_sha256)
    seen.add(make(tiny_model, rubric="project").rubric_sha256)
    assert len(seen) == 4
    assert make(tiny_model, {"batch_size": 8}).profile.sha256 == usual.profile.sha256
    assert make(tiny_model, opening="Rating:").profile.sha256 != usual.profile.sha256


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rubric": "matrix"}, "asks for all traits in one reply.*such as 'direct'"),
        ({"opening": "[[ "}, "opening"),
        ({"opening": ""}, "opening"),
        ({"least_mass": 2}, "least_mass"),
        ({"modl": "x"}, "unknown key 'modl': did you mean 'model'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make("demo", **settings)


def test_a_model_that_is_not_there() -> None:
    judge = make("./nowhere")
    with pytest.raises(ModelError, match=r"\./nowhere does not exist"):
        rate_all(judge, ITEMS[:1])
    with pytest.raises(ModelError, match=r"\./nowhere does not exist"):
        _ = judge.rubric_sha256


@given(values=st.lists(st.floats(0, 0.2), min_size=5, max_size=5), least=st.floats(0, 1))
def test_the_expected_rating(values: list[float], least: float) -> None:
    verdict = expected_rating(values, least)
    mass = math.fsum(values)
    if mass == 0 or mass < least:
        assert isinstance(verdict, Unrated)
        return
    assert isinstance(verdict, Rating)
    mean = sum((place + 1) * value for place, value in enumerate(values)) / mass
    assert verdict.value == pytest.approx(mean, abs=1e-4)
    assert sum(verdict.basis["probabilities"]) == pytest.approx(1.0, abs=1e-3)
    json.dumps(verdict.to_json(), allow_nan=False)


def test_probability_that_is_nowhere_is_no_rating() -> None:
    assert expected_rating([0.0] * 5, 0.0) == Unrated("no-mass", "0 of the probability on 1 to 5, 0 is needed")
    assert expected_rating([0.0, 0.0, 0.03, 0.0, 0.0], 0.25) == Unrated(
        "no-mass", "0.03 of the probability on 1 to 5, 0.25 is needed"
    )
    assert expected_rating([0.0, 0.0, 0.0, 0.3, 0.1], 0.25) == Rating(
        4.25, basis={"mass": 0.4, "probabilities": [0.0, 0.0, 0.0, 0.75, 0.25]}
    )


# A served model


class _Completions(BaseHTTPRequestHandler):
    """OpenAI's completions with ``echo``: 4 is as likely as all else together, the other tokens are as good as sure."""

    chances: dict[int, float]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices = []
        for place, tokens in enumerate(body["prompt"]):
            logprobs = [None, *[-0.001] * (len(tokens) - 2), math.log(self.chances.get(tokens[-1], 0.001)), -1.0]
            tops = [None, *[{"x": 0.0}] * len(tokens)]
            choices.append({"index": place, "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}})
        content = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def completions(demo_model: Path) -> Iterator[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    chances = {"4": 0.5, "5": 0.25, "1": 0.05}
    _Completions.chances = {tokenizer.encode(digit)[0]: chance for digit, chance in chances.items()}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Completions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/completions"
        server.shutdown()


@pytest.mark.model
def test_a_served_model_that_tells_likelihoods(completions: str, demo_model: Path) -> None:
    pytest.importorskip("tenacity")
    args = {"base_url": completions, "tokenizer": str(demo_model)}
    judge = make("served", backend="local-completions", args=args)
    (verdict,) = ratings(judge, ITEMS[:1])
    assert verdict.basis["mass"] == pytest.approx(0.802)
    assert verdict.value == pytest.approx((0.05 + 0.002 + 0.003 + 2.0 + 1.25) / 0.802, abs=1e-3)
    assert judge.rubric_sha256 == make("other", backend="local-completions", args=args).rubric_sha256
    gone = make("served", backend="local-completions", args=args | {"base_url": "http://127.0.0.1:9/v1/completions"})
    with pytest.raises(JudgeError, match="'local-completions': no answer from the model"):
        rate_all(gone, ITEMS[:1])


@pytest.mark.model
def test_a_server_of_chats_tells_none(completions: str) -> None:
    pytest.importorskip("tenacity")
    judge = make("served", backend="local-chat-completions", args={"base_url": completions})
    with pytest.raises(ConfigurationError, match=r"cannot tell how likely a text is .*the provider 'chat'"):
        rate_all(judge, ITEMS[:1])
