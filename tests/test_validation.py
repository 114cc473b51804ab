"""What a user wrote wrongly, in one line."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from personalitybench.errors import ConfigurationError
from personalitybench.validation import validate


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Engine(Part):
    power: int = Field(default=1, ge=1)
    fuel: Literal["petrol", "diesel"] = "petrol"


class Wheel(Part):
    size: float
    engine: Engine | None = None


class Car(Part):
    title: str = "car"
    engine: Engine = Engine()
    wheels: list[Wheel] = []
    spares: dict[str, Wheel] = {}
    doors: int = 4

    @field_validator("title")
    @classmethod
    def _plain(cls, value: str) -> str:
        if "!" in value:
            raise ValueError("no exclamation marks")
        return value

    @model_validator(mode="after")
    def _three_wheels(self) -> Car:
        if len(self.wheels) == 3:
            raise ValueError("three wheels are a tricycle")
        return self


def refusal(value: Any, where: str = "suite s.yaml") -> str:
    with pytest.raises(ConfigurationError) as caught:
        validate(Car, value, where)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{where}: ")
    return text.removeprefix(f"{where}: ")


def test_what_is_right_is_returned() -> None:
    car = validate(Car, {"wheels": [{"size": 2}, {"size": "3", "engine": {"power": 9}}]}, "here")
    assert [wheel.size for wheel in car.wheels] == [2.0, 3.0]
    assert car.wheels[1].engine == Engine(power=9)
    assert car.doors == 4


@pytest.mark.parametrize(
    ("value", "place", "nearest"),
    [
        ({"door": 2}, "door", "doors"),
        ({"engine": {"pwer": 2}}, "engine.pwer", "power"),
        ({"wheels": [{"size": 1}, {"size": 1, "sise": 2}]}, "wheels.1.sise", "size"),
        ({"wheels": [{"size": 1, "engine": {"feul": "diesel"}}]}, "wheels.0.engine.feul", "fuel"),
        ({"spares": {"left": {"size": 1, "engin": {}}}}, "spares.left.engin", "engine"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest(value: dict[str, Any], place: str, nearest: str) -> None:
    assert refusal(value).startswith(f"unknown key '{place}': did you mean '{nearest}'? known are ")


def test_an_unknown_key_lists_what_is_known_there() -> None:
    assert refusal({"engine": {"xyzzy": 1}}) == "unknown key 'engine.xyzzy': known are fuel, power"

    class Nothing(Part): ...

    with pytest.raises(ConfigurationError, match="here: unknown key 'a': there are none"):
        validate(Nothing, {"a": 1}, "here")


def test_a_missing_key_is_named() -> None:
    assert refusal({"wheels": [{"size": 1}, {}]}) == "'wheels.1.size' is missing"


def test_a_misspelt_required_key_is_unknown_rather_than_missing() -> None:
    """Both are true; only the unknown one tells what to change."""
    assert refusal({"wheels": [{"sise": 1}]}).startswith("unknown key 'wheels.0.sise': did you mean 'size'?")


def test_several_errors_are_counted() -> None:
    assert refusal({"wheels": [{}, {}, {}]}) == "'wheels.0.size' is missing (and 2 more)"
    assert refusal({"doors": "many", "engine": {"power": 0}}).endswith(" (and 1 more)")
    assert "more)" not in refusal({"doors": "many"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"doors": "many"}, r"doors: .*integer.*, not 'many'"),
        ({"engine": {"power": 0}}, r"engine\.power: .*greater than or equal to 1, not 0"),
        ({"engine": {"fuel": "steam"}}, r"engine\.fuel: .*'petrol' or 'diesel', not 'steam'"),
        ({"title": "car!"}, r"title: no exclamation marks$"),
        ({"wheels": [{"size": 1}] * 3}, r"three wheels are a tricycle$"),
        (None, r".*valid dictionary.*, not None"),
        ([1], r".*valid dictionary.*, not \[1\]"),
    ],
)
def test_a_wrong_value_says_where_what_and_what_it_was(value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^options: {says}"):
        validate(Car, value, "options")
