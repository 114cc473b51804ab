"""The paper's text for judges, read at run time out of a pinned public release. Nothing of it is executed.

The paper's own release keeps the prompts (Tables 12 and 13) in a script that also holds a leaked key, so they are
taken from a later work that evaluates on the same benchmark and has a licence (DPN-LE, MIT). There the prompts are
f-strings that two functions return, and the facets a module-level dictionary.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from personalitybench import downloads
from personalitybench.errors import DataError
from personalitybench.judging.base import FLUENCY
from personalitybench.prompts import read_constants
from personalitybench.traits import BIG_FIVE

# Path and git blob id in the release that has the judge's prompts.
_OFFICIAL_FILE = ("experiments/personality_bench/score_with_gpt.py", "a1262cf2a3816d5fce6f8b40857e9e14fb0815bb")


def read_official_turns() -> dict[str, str]:
    """Read the user turns for the five traits and for fluency, as Jinja templates of ``question`` and ``answer``.

    Raises:
        DataError: The file cannot be fetched, or has not the functions and constants that it should have.
    """
    path = downloads.fetch_pinned(*_OFFICIAL_FILE, release=downloads.JUDGE_PROMPTS)
    functions = {
        node.name: node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    factors = read_constants(path).get("TRAIT_FACTORS")
    if not isinstance(factors, dict):
        raise DataError(f"{path} has no constant TRAIT_FACTORS that is a dict: it is not the pinned release")
    missing = [trait.file_name for trait in BIG_FIVE if not isinstance(factors.get(trait.file_name), str)]
    if missing:
        raise DataError(f"{path}: TRAIT_FACTORS lacks {', '.join(missing)}: it is not the pinned release")
    asked = _returned_text(functions, "trait_prompt", {"trait", "factors", "question", "answer"}, path)
    turns = {}
    for trait in BIG_FIVE:
        known = {"trait": trait.file_name, "factors": factors[trait.file_name]}
        turns[trait.name] = _as_template(asked, known)
    turns[FLUENCY] = _as_template(_returned_text(functions, "fluency_prompt", {"answer"}, path), {})
    return turns


def _returned_text(
    functions: Mapping[str, ast.FunctionDef], name: str, slots: Collection[str], path: Path
) -> list[str | ast.Name]:
    """The f-string that a function returns: pieces of text, and names of what is filled in."""
    last = functions[name].body[-1] if name in functions else None
    text = last.value if isinstance(last, ast.Return) else None
    pieces = [_piece(part) for part in text.values] if isinstance(text, ast.JoinedStr) else []
    if {piece.id for piece in pieces if isinstance(piece, ast.Name)} != set(slots) or None in pieces:
        names = ", ".join(sorted(slots))
        raise DataError(f"{path} has no function {name} that returns an f-string of {names}: not the pinned release")
    return [piece for piece in pieces if piece is not None]


def _piece(part: ast.expr) -> str | ast.Name | None:
    """One part of an f-string, if it is text or a plain ``{name}``."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    if not isinstance(part, ast.FormattedValue) or part.conversion != -1 or part.format_spec is not None:
        return None
    return part.value if isinstance(part.value, ast.Name) else None


def _as_template(pieces: Sequence[str | ast.Name], known: Mapping[str, str]) -> str:
    """Fill in what is known, and leave the rest to Jinja."""
    source = ""
    for piece in pieces:
        if isinstance(piece, str):
            source += _literal(piece)
        elif piece.id in known:
            source += _literal(known[piece.id])
        else:
            source += f"{{{{ {piece.id} }}}}"
    return source


def _literal(text: str) -> str:
    """A text as Jinja source that renders to it: every tag of Jinja's begins with a brace."""
    return text.replace("{", "{{ '{' }}")
