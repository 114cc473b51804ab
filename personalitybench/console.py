"""The rich console of all commands: no markup, no emoji codes, controls of outside text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from personalitybench.outside_text import escape_controls
from personalitybench.redaction import hide_keys


class PlainConsole(Console):
    """A console that prints text as it is written; style comes from ``Text`` and ``style`` only.

    Args:
        options: Those of ``rich.console.Console``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise the error; the command line ends as other programs do."""
        raise  # noqa: PLE0704 (rich calls this while it handles the error)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape, and hide the environment's keys, before the layout is measured."""
        return super().render_str(escape_controls(hide_keys(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape what a ``Text`` holds; rich's own control segments stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


def plain_text(text: str, style: str = "") -> Text:
    """Return text in a style, its controls escaped before a layout measures it."""
    return Text(escape_controls(text), style=style)
