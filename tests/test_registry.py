"""The registry with real distributions on ``sys.path``: found by name, imported late, broken ones named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personalitybench.errors import ConfigurationError
from personalitybench.registry import Registry

GROUP = "personalitybench.tests.things"
Install = Callable[..., None]


@pytest.fixture
def registry() -> Registry[type]:
    return Registry("thing", GROUP, {"path": "pathlib:Path", "decimal": "decimal:Decimal"})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one module and its entry points on ``sys.path``."""
    modules: list[str] = []

    def make(name: str, code: str, **points: str) -> None:
        site = tmp_path / name
        module = name.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"{point} = {value}" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
        (site / f"{module}.py").write_text(code)
        modules.append(module)
        monkeypatch.syspath_prepend(site)

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def test_our_own_are_loaded_by_bare_name(registry: Registry[type]) -> None:
    assert registry.get("path") is Path
    assert registry.get("path") is Path
    assert registry.names() == ["path", "decimal"]


def test_an_entry_point_is_found_by_package_and_name_and_imported_when_used(
    registry: Registry[type], install: Install
) -> None:
    install("other-things", "class Loud:\n    volume = 11\n", loud="other_things:Loud")
    assert registry.names() == ["path", "decimal", "other-things/loud"]
    assert "other_things" not in sys.modules, "a list imports nothing"
    found = registry.get("other-things/loud")
    assert found.__name__ == "Loud"
    assert registry.get("other-things/loud") is found
    assert sys.modules["other_things"].Loud is found


def test_two_packages_may_use_the_same_name(registry: Registry[type], install: Install) -> None:
    install("first-things", "class Loud: ...\n", loud="first_things:Loud")
    install("second-things", "class Loud: ...\n", loud="second_things:Loud", path="second_things:Loud")
    assert registry.get("first-things/loud").__module__ == "first_things"
    assert registry.get("second-things/loud").__module__ == "second_things"
    assert registry.get("path") is Path, "a package cannot take one of our names"


def test_the_bare_name_of_another_package_is_unknown(registry: Registry[type], install: Install) -> None:
    install("other-things", "class Loud: ...\n", loud="other_things:Loud")
    with pytest.raises(ConfigurationError, match=r"unknown thing 'loud'.*other-things/loud"):
        registry.get("loud")


@pytest.mark.parametrize(
    ("code", "point"),
    [
        ("", "nowhere_at_all:Loud"),
        ("import not_installed_anywhere\n", "other_things:Loud"),
        ("", "other_things:Loud"),
        ("", "not a reference"),
        ("class Loud\n", "other_things:Loud"),
        ("raise RuntimeError('no licence key')\n", "other_things:Loud"),
    ],
    ids=["no-module", "needs-a-module", "no-attribute", "no-reference", "syntax-error", "fails-at-import"],
)
def test_a_broken_package_is_named_and_breaks_nothing_else(
    registry: Registry[type], install: Install, code: str, point: str
) -> None:
    install("other-things", code, loud=point)
    assert "other-things/loud" in registry.names()
    says = r"^thing 'other-things/loud' is declared as .* but cannot be imported: "
    with pytest.raises(ConfigurationError, match=says) as caught:
        registry.get("other-things/loud")
    assert repr(point) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.get("path") is Path


def test_a_misspelt_name_names_the_nearest(registry: Registry[type], install: Install) -> None:
    install("other-things", "class Loud: ...\n", loud="other_things:Loud")
    for wrong, right in [("pth", "path"), ("decimals", "decimal"), ("other-thing/loud", "other-things/loud")]:
        with pytest.raises(ConfigurationError, match=f"unknown thing '{wrong}': did you mean '{right}'"):
            registry.get(wrong)
    with pytest.raises(ConfigurationError, match="known are decimal, other-things/loud, path") as caught:
        registry.get("xyzzy")
    assert "did you mean" not in str(caught.value)


def test_registering_in_this_process(registry: Registry[type]) -> None:
    @registry.register("zebra")
    class Zebra: ...

    @registry.register("ant")
    class Ant: ...

    assert registry.get("zebra") is Zebra
    assert registry.get("ant") is Ant
    assert registry.names() == ["path", "decimal", "ant", "zebra"]
    assert registry.register("ant")(Ant) is Ant, "a module that is imported again registers the same thing"


@pytest.mark.parametrize("name", ["path", "decimal", "ant"])
def test_a_taken_name_is_refused(registry: Registry[type], name: str) -> None:
    registry.register("ant")(list)
    registry.get("path")
    with pytest.raises(ConfigurationError, match=f"thing '{name}' is registered already"):
        registry.register(name)(dict)
    assert registry.get("path") is Path
    assert registry.get("ant") is list


def test_registries_do_not_share(registry: Registry[type]) -> None:
    other: Registry[type] = Registry("thing", GROUP, {})
    registry.register("ant")(list)
    with pytest.raises(ConfigurationError, match="unknown thing 'ant': there are none"):
        other.get("ant")
