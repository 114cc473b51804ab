"""The wording of the paper's protocol: what the user turn says. In the project's own words, or the paper's.

The protocol (Deng et al., ICLR 2025; Tables 9-11 and the released scripts): the model is to answer as a person,
not as a language model, with authentic thoughts, in at most 300 words; one user turn. The paper's own text has
no licence, so it is read at run time out of the pinned release, as string constants, with nothing executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from personalitybench import downloads
from personalitybench.errors import DataError, unknown_name
from personalitybench.files import content_hash
from personalitybench.traits import TARGETS, Target

WORDINGS = ("project", "official")

_PLACEHOLDER = re.compile(r"\{(adjective|personality|question|examples)\}")


@dataclass(frozen=True)
class Wording:
    """Templates of user turns; ``{personality}``, ``{question}`` and so on stand for what is filled in.

    Attributes:
        name: ``project`` or ``official``.
        plain: No persona: how a model that is not prompted, or is steered, is asked (Table 11).
        simple: ``{personality}`` is an adjective with its article (Table 9).
        p2: ``{personality}`` is a description (Table 10).
        few_shot: ``{examples}`` are answers of the pole; the project's own, the paper has none.
        identify: ``{personality}`` is a description: how answers for identification are drawn. The project's own names
            the adjective as well, since a small model follows a description alone too weakly to be told apart.
        adjectives: What fills ``simple`` and ``{adjective}``, for each target.
    """

    name: str
    plain: str
    simple: str
    p2: str
    few_shot: str
    identify: str
    adjectives: Mapping[Target, str]

    @property
    def sha256(self) -> str:
        """Hash of the whole wording, for a row's identity."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return content_hash(values | {"adjectives": {str(t): a for t, a in self.adjectives.items()}})

    def identify_as(self, target: Target) -> str:
        """The template of identification for a target, its adjective filled in."""
        return fill(self.identify, adjective=self.adjectives[target])


def fill(template: str, **values: str) -> str:
    """Fill placeholders in one pass, so that braces in a question or a description are left as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


_RULE = "Say honestly what you think, feel and do, in your own natural voice. Use no more than 300 words."
_ASKED = "What would {who} say if someone asked {whom} this?\n\n{{question}}\n\n" + _RULE

# Chosen among four drafts on the dev half of the sample questions with the demo model (docs/reference.md).
_PROJECT = Wording(
    name="project",
    plain="Imagine you are a real person, not a language model. " + _ASKED.format(who="you", whom="you"),
    simple=(
        "Imagine you are {personality} person, not a language model. "
        + _ASKED.format(who="{personality} person", whom="them")
        + " Write as {personality} person."
    ),
    p2=(
        "Imagine that this is you: {personality}\n\nYou are this person, not a language model. "
        + _ASKED.format(who="you", whom="you")
        + " Write as this person."
    ),
    few_shot=(
        "Imagine that it was you who gave these answers:\n\n{examples}\n\nYou are this same person, not a language "
        "model. " + _ASKED.format(who="you", whom="you") + " Write as this person."
    ),
    identify=(
        "Below are the portrait of a person and a question. Leave behind who you are and become this person "
        "entirely: take on their outlook, their tone and their attitude, and answer as they would. Start writing at "
        "once and let the thoughts come; spelling and grammar do not matter, the character of the person does. "
        "Use no more than 300 words.\n\nPortrait: {personality}\n\nQuestion: {question}\n\n"
        "Your answer, as {adjective} person:"
    ),
    adjectives={target: target.adjective for target in TARGETS},
)

# Where the paper's wording stands in the pinned release: path, git blob id, and the constants taken from it.
_OFFICIAL_FILES: dict[str, tuple[str, str]] = {
    "identify": ("NPTI/code/search_neuron.py", "fd5f487464354187e4e9a3cddb833b2d286b2d8d"),
    "plain": ("NPTI/code/answer_question_change_neuron.py", "d6cd3e037fa6958b49f169f2b1b863cb3ecdf1e4"),
    "prompting": ("NPTI/code/baseline_prompt.py", "93282b7ee853873e35d7e297dda14fdb60bbab88"),
}


def load_wording(name: str) -> Wording:
    """Load a wording by name.

    Args:
        name: ``project`` or ``official`` (fetches three files of the pinned release on first use).

    Raises:
        ConfigurationError: No such wording.
        DataError: The release cannot be fetched.
    """
    if name == "project":
        return _PROJECT
    if name == "official":
        return _official()
    raise unknown_name("wording of prompts", name, WORDINGS)


@lru_cache(maxsize=1)
def _official() -> Wording:
    paths = {key: downloads.fetch_pinned(*where) for key, where in _OFFICIAL_FILES.items()}
    prompting = read_constants(paths["prompting"])
    adjectives = _constant(prompting, "personality_adj", dict, paths["prompting"])
    missing = [target.file_key for target in TARGETS if target.file_key not in adjectives]
    if missing:
        path = paths["prompting"]
        raise DataError(f"{path}: personality_adj lacks {', '.join(missing)}: it is not the pinned release")
    return Wording(
        name="official",
        plain=_constant(read_constants(paths["plain"]), "TEMPLATE", str, paths["plain"]),
        simple=_constant(prompting, "TEMPLATE_sp", str, paths["prompting"]),
        p2=_constant(prompting, "TEMPLATE_p2", str, paths["prompting"]),
        few_shot=_PROJECT.few_shot,
        identify=_constant(read_constants(paths["identify"]), "TEMPLATE", str, paths["identify"]),
        adjectives={target: str(adjectives[target.file_key]) for target in TARGETS},
    )


def read_constants(path: Path) -> dict[str, Any]:
    """Read module-level constants (``NAME = literal``) of a Python file without running any of it."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _constant(constants: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = constants.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{path} has no constant {name} that is a {kind.__name__}: it is not the pinned release")
    return value
