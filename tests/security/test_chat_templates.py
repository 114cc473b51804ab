"""Chat templates that never end or take all memory end with one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from personalitybench import chat_templates
from personalitybench.chat_templates import bound_chat_template
from personalitybench.errors import ModelError

pytestmark = pytest.mark.model

NO_END = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
HOSTILE = {
    "two loops": (NO_END, "10 seconds"),
    "loops where the question is long": ("{% if messages[0].content|length > 20 %}" + NO_END + "{% endif %}", "10 s"),
    "macros that call themselves": ("{% macro m(n) %}{{ m(n+1) }}{{ m(n+1) }}{% endmacro %}{{ m(0) }}", "recursion"),
    "macros that branch": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "10 seconds",
    ),
    "a product": ("{{ 'a' * 2000000000 }}", "memory"),
    "a wide format": ("{{ '%2000000000d' % 1 }}", "memory"),
    "a filter": ("{{ 'a'|center(2000000000) }}", "memory"),
    "doubling": (
        "{% set x = namespace(s='aaaa') %}{% for i in range(40) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
        "memory",
    ),
    "a long text": ("{{ 'a' * 5000000 }}", "4,000,000 characters"),
}


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


TEN_SECONDS_EACH = {"two loops", "macros that branch"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in TEN_SECONDS_EACH else []) for case in HOSTILE]
)
def test_hostile_templates_are_one_line(tokenizer: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template, says = HOSTILE[case]
    bound_chat_template(tokenizer)
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"the chat template of .* takes .* for one prompt") as raised:
        tokenizer.apply_chat_template([{"role": "user", "content": "What would you do on such a day?"}], tokenize=False)
    assert says in str(raised.value)
    assert time.monotonic() - begun < 40


def test_others_render_as_before_and_after_a_hostile_one(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Ünïcödé, \u2028 and\nlines?"}]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    plain = tokenizer.apply_chat_template(chat, **options)
    bound_chat_template(tokenizer)
    bound_chat_template(tokenizer)
    assert tokenizer.apply_chat_template(chat, **options) == plain
    wanted, tokenizer.chat_template = tokenizer.chat_template, "{{ 'a' * 2000000000 }}"
    with pytest.raises(ModelError):
        tokenizer.apply_chat_template(chat, **options)
    tokenizer.chat_template = wanted
    assert tokenizer.apply_chat_template(chat, **options) == plain


def test_errors_of_a_template_stay_the_library_s(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    bound_chat_template(tokenizer)
    with pytest.raises(Exception, match="roles must alternate"):
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


def test_a_template_of_megabytes_is_not_compiled(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}" + "x" * chat_templates.MAX_TEMPLATE
    bound_chat_template(tokenizer)
    with pytest.raises(ModelError, match="more than 1,000,000 characters"):
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_run_and_dry_run_end(tiny_model: Path, tmp_path: Path, dry: list[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text("{{ 'a' * 2000000000 }}")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: s\nmodels: [{{name: {model}, args: {{dtype: float32}}}}]\nmethods: [none]\njudges: [offline]\n"
        "targets: [openness:high]\nquestions: {limit: 1}\nprotocol: {max_tokens: 2}\nfloors: false\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "personalitybench.cli", "run", str(suite), "--output", str(tmp_path / "run"), *dry],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "takes more than 512 MB of memory for one prompt" in done.stderr.splitlines()[-1]
