"""A model as a plan sees it: whether it is on this machine, its tokenizer, its shape. No weights are loaded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from personalitybench.backends.loading import LOCAL_BACKENDS, quiet_libraries
from personalitybench.backends.projections import SEPARATE, projection_widths
from personalitybench.chat_templates import bound_chat_template
from personalitybench.errors import ModelError, UnreadableModelError
from personalitybench.files import read_json
from personalitybench.judging.prices import estimate_tokens
from personalitybench.model_files import check_model_files
from personalitybench.models import resolve_model
from personalitybench.runs.suite import ModelSpec

logger = logging.getLogger(__name__)

_WEIGHTS = {".safetensors", ".bin", ".gguf"}


class PlannedModel:
    """A model of a suite.

    Args:
        spec: As the suite has it.

    Attributes:
        missing: Why it is not on this machine; empty where it is, or where it is served elsewhere.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.missing = ""
        self._location: str | None = None
        self._counts: dict[str, int] = {}
        if spec.backend in LOCAL_BACKENDS:
            try:
                self._location = resolve_model(spec.name, spec.revision).location
                if Path(self._location).is_dir():
                    check_model_files(Path(self._location), spec.args)
            except UnreadableModelError:
                raise
            except ModelError as error:
                self.missing = str(error)

    @cached_property
    def folder(self) -> Path | None:
        """Where its files lie: a local folder, or the hub's snapshot on this machine."""
        if self._location is None or Path(self._location).is_dir():
            return None if self._location is None else Path(self._location)
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (slow import)

        config = try_to_load_from_cache(self._location, "config.json", revision=self.spec.revision)
        return Path(config).parent if isinstance(config, str) else None

    @cached_property
    def weights(self) -> int | None:
        """Bytes of its weights on this machine; None: they are not here, or served elsewhere."""
        files = [] if self.folder is None else [path for path in self.folder.iterdir() if path.suffix in _WEIGHTS]
        return sum(path.stat().st_size for path in files) or None

    @cached_property
    def neurons(self) -> int | None:
        """Neurons of its gated MLPs, all layers together, as its configuration says; None where it is not here."""
        layers, width = self._config.get("num_hidden_layers"), self._config.get("intermediate_size")
        return layers * width if isinstance(layers, int) and isinstance(width, int) else None

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and answer at most, as lm-eval finds them; None where the configuration does not say."""
        names = ("max_length", "max_model_len")
        given = (self.spec.args.get(name) for name in names)
        stated = (self._config.get(name) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
        return next((value for value in (*given, *stated) if isinstance(value, int)), None)

    def widths(self, projections: Collection[str]) -> int | None:
        """Inputs and outputs of projections, all layers together; None where the configuration does not say.

        Args:
            projections: Their names; empty for all of attention and MLP.
        """
        try:
            found = projection_widths(SimpleNamespace(**self._config))
            return int(self._config["num_hidden_layers"]) * sum(sum(found[name]) for name in projections or SEPARATE)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    @cached_property
    def _config(self) -> dict[str, Any]:
        """Its configuration, or that of its text part; empty where it is not here."""
        config = None if self.folder is None else self.folder / "config.json"
        found: dict[str, Any] = read_json(config, finite=False) if config is not None and config.is_file() else {}
        text: dict[str, Any] = found.get("text_config", found)
        return text

    @property
    def counts_exactly(self) -> bool:
        """Whether :meth:`count` uses the model's own tokenizer."""
        return self._tokens is not None

    def count(self, turn: str) -> int:
        """Tokens of a user turn as the model reads it, in its chat template; guessed without its tokenizer."""
        if turn not in self._counts:
            tokens = self._tokens
            guess = estimate_tokens([{"role": "user", "content": turn}]) if tokens is None else tokens(turn)
            self._counts[turn] = guess
        return self._counts[turn]

    @cached_property
    def _tokens(self) -> Callable[[str], int] | None:
        """The model's tokenizer as lm-eval's transformers model uses it."""
        if self.folder is None or importlib.util.find_spec("transformers") is None:
            return None
        from transformers import AutoTokenizer  # noqa: PLC0415 (heavy, and optional)

        with quiet_libraries():
            try:
                tokenizer: Any = AutoTokenizer.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError) as error:
                logger.debug("tokenizer of %s: %s", self.folder, error)
                return None
        bound_chat_template(tokenizer)
        chat = getattr(tokenizer, "chat_template", None) is not None

        def count(turn: str) -> int:
            text = turn
            if chat:
                messages = [{"role": "user", "content": turn}]
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
            return len(tokenizer.encode(text, **({"add_special_tokens": False} if begun else {})))

        return count
