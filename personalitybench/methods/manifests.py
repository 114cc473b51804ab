"""What stands beside all that a fit left: from what it was made. Methods that fit add what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.files import read_json
from personalitybench.methods.base import MethodSettings

S = TypeVar("S", bound=MethodSettings)


class FitManifest(BaseModel):
    """``METHOD.json`` in an artifact, written last. Equal fits have equal manifests.

    Attributes:
        method: Name of the method, and of the file.
        model: Name and revision of the weights, engine, and how it loaded them.
        data: Source and revision of the questions and descriptions.
        wording: Name and hash of the templates.
        seed: Seed of all that was drawn.
        settings: Those that the fit depends on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: ClassVar[str]

    model: dict[str, Any]
    data: dict[str, str]
    wording: dict[str, str]
    seed: int
    settings: dict[str, Any]

    @classmethod
    def path(cls, artifact: Path) -> Path:
        """Where it stands in an artifact."""
        return artifact / f"{cls.method}.json"

    @classmethod
    def read(cls, artifact: Path) -> Self:
        """Read the manifest of an artifact.

        Raises:
            StorageError: The folder holds no finished fit of this method.
        """
        path = cls.path(artifact)
        if not path.is_file():
            raise StorageError(f"{artifact} holds no finished fit of {cls.method} ({path.name} is missing): fit again")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise StorageError(
                f"{path} describes no fit of {cls.method} ({place}: {first['msg']}): fit again"
            ) from error

    def settings_in_use(self, settings: S) -> S:
        """Settings that are true of an artifact: those of its fit, and what the user says about using it.

        Raises:
            ConfigurationError: The user set something else than the fit had.
        """
        given = settings.model_dump(mode="json", include=settings.model_fields_set)
        for name in sorted(given.keys() & self.settings.keys()):
            if given[name] != self.settings[name]:
                raise ConfigurationError(
                    f"setting {name!r} of method {self.method!r} is {given[name]!r}, but the artifact was fitted with "
                    f"{self.settings[name]!r}: leave the setting out, or fit with it"
                )
        used = {name: given[name] for name in given.keys() & settings.used_after_fit}
        return type(settings).model_validate({**self.settings, **used})
