"""One small registry for everything that others can add: methods, judges.

Names of our own are bare (``simple``); a name from another package is ``package/name``. Entry points are
read only when a name is missed or a full list is asked for, and an entry is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from personalitybench.errors import ConfigurationError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to classes, loaded lazily.

    Args:
        kind: What is registered, in the singular, for error texts.
        group: Entry-point group of other packages.
        builtins: Our own names, each with ``module:attribute``.
    """

    def __init__(self, kind: str, group: str, builtins: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._builtins = dict(builtins)
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under a name for this process.

        Raises:
            ConfigurationError: The name is taken.
        """

        def decorate(item: T) -> T:
            if name in self._builtins or self._registered.get(name, item) is not item:
                raise ConfigurationError(f"{self.kind} {name!r} is registered already: choose another name")
            self._registered[name] = item
            return item

        return decorate

    def get(self, name: str) -> T:
        """Look up by name.

        Raises:
            ConfigurationError: Unknown name (the text names the nearest), or its package fails to import.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtins:
            module, _, attribute = self._builtins[name].partition(":")
            item: T = getattr(import_module(module), attribute)
        else:
            found = self._entry_points()
            if name not in found:
                raise unknown_name(self.kind, name, self.names())
            try:
                item = found[name].load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a package of somebody else raises when it is imported
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise ConfigurationError(
                    f"{self.kind} {name!r} is declared as {found[name].value!r} but cannot be imported: {reason}"
                ) from error
        self._registered[name] = item
        return item

    def names(self) -> list[str]:
        """All names: ours in their own order, then those of this process and of other packages."""
        others = {*self._registered, *self._entry_points()} - self._builtins.keys()
        return [*self._builtins, *sorted(others)]

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {
            f"{point.dist.name}/{point.name}": point
            for point in entry_points(group=self.group)
            if point.dist is not None
        }
