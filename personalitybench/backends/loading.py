"""Load a model through lm-eval's own model classes, and form the batches that lm-eval would form."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.openai_completions import LocalChatCompletion
from lm_eval.models.utils import Collator

from personalitybench.argument_policy import refuse_remote_code
from personalitybench.backends.needs import MODEL_TYPES, STEERABLE, STEERABLE_VLLM
from personalitybench.backends.whole_answers import require_whole_answers
from personalitybench.completions import quote
from personalitybench.errors import ModelError
from personalitybench.host_policy import refuse_unnamed_hosts
from personalitybench.model_files import check_dtype, check_model_files
from personalitybench.models import resolve_model
from personalitybench.redaction import redact
from personalitybench.versions import drift_error, import_failure, warn_of_untried_versions

# Model types that load weights themselves; the others are spoken to by the name of a model.
LOCAL_BACKENDS = frozenset({"hf", "hf-auto", "huggingface", "vllm", STEERABLE, STEERABLE_VLLM})


_LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ArithmeticError),
    *(RecursionError, MemoryError, re.error),
)
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def model_arguments(
    backend: str, name: str, revision: str | None, args: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """Arguments for lm-eval's model class, the model's name resolved.

    Args:
        backend: lm-eval model type.
        name: Local folder, hub name, or ``demo``; for an API the model's name there.
        revision: Hub revision.
        args: Arguments besides.

    Returns:
        The arguments, and the revision of the weights where these are loaded here.

    Raises:
        ModelError: There is no such model.
        ConfigurationError: There is no such ``dtype``.
    """
    if backend in LOCAL_BACKENDS:
        check_dtype(args)
        resolved = resolve_model(name, revision)
        given = {**args, "revision": revision} if revision else dict(args)
        return {"pretrained": resolved.location, **given}, resolved.identity.revision
    if backend == "dummy":
        return dict(args), None
    return {"model": name, **args}, None


def check_model(args: Mapping[str, Any]) -> None:
    """Refuse a local folder that cannot be loaded, before it is loaded; see :mod:`personalitybench.model_files`.

    Args:
        args: Arguments of lm-eval's model class, the model's name resolved.

    Raises:
        ModelError: Names the file.
        ConfigurationError: There is no such ``dtype``.
    """
    check_dtype(args)
    folder = args.get("pretrained")
    if isinstance(folder, str) and Path(folder).is_dir():
        check_model_files(Path(folder), args)


def check_loadable(backend: str, args: Mapping[str, Any], *, key: bool = True) -> None:
    """Refuse a model that cannot be asked, without loading it: its folder, its type, address and key of a server.

    Args:
        backend: lm-eval model type.
        args: Its arguments.
        key: Whether the key of a server must be set; a dry run needs none.

    Raises:
        ModelError: Names what is missing.
        ConfigurationError: There is no such ``dtype``.
        MissingDependencyError: A package is missing.
    """
    if backend in LOCAL_BACKENDS:
        check_model(args)
    with quiet_libraries():
        kind = _model_type(backend)
    if not issubclass(kind, TemplateAPI):
        return
    name = f"served model {args.get('model', backend)!r}"
    address = inspect.signature(kind.__init__).parameters.get("base_url")
    if address is not None and not (args.get("base_url") or address.default):
        raise ModelError(f"{name} needs base_url, such as http://localhost:8000/v1/...")
    if key:
        _require_key(kind, name)


def _require_key(kind: type[LM], name: str) -> None:
    """Refuse a served model whose class finds no key in the environment."""
    found = inspect.getattr_static(kind, "api_key", None)
    read = found.func if isinstance(found, cached_property) else found.fget if isinstance(found, property) else None
    try:
        if read is not None:
            read(object.__new__(kind))
    except ValueError as error:  # lm-eval's: the variable of the key is not set
        raise ModelError(f"{name}: {quote(str(error))}") from None
    except AttributeError:  # it needs a model that is made; loading tells then
        return


def load_model(backend: str, args: Mapping[str, Any], batch_size: int, device: str | None) -> LM:
    """Build a model of one of lm-eval's types.

    Args:
        backend: lm-eval model type, e.g. ``hf``, ``vllm``, ``local-chat-completions``, ``dummy``.
        args: Its arguments, as ``--model_args``.
        batch_size: Requests at a time.
        device: Torch device, or None for the default.

    Raises:
        ConfigurationError: It would run code of the model's folder, or send to a host, which the user did not allow.
        ModelError: No such type, or it cannot be loaded.
        MissingDependencyError: A package is missing.
    """
    where = f"model {args.get('pretrained', args.get('model', backend))}"
    refuse_remote_code(args, where)
    refuse_unnamed_hosts(args, where, "prompts", provider=backend)
    warn_of_untried_versions()
    if backend in LOCAL_BACKENDS:
        check_model(args)
    with quiet_libraries():
        kind = _model_type(backend)
        try:
            device = device or _default_device(backend)
            safe = {"use_safetensors": True} if is_transformers(backend) and not args.get("gguf_file") else {}
            with _missing_weights_refused():
                model: LM = kind.create_from_arg_obj({**safe, **args}, {"batch_size": batch_size, "device": device})
        except ImportError as error:
            raise import_failure(error, f"backend {backend!r}", _extra(backend)) from error
        except _loading_errors() as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if "ignore_mismatched_sizes" in str(error):
                first = "its weights have other shapes than config.json says"
            name = args.get("pretrained", args.get("model", "without a name"))
            others = ", ".join(sorted(args.keys() - {"pretrained", "model"})) or "none"
            text = f"backend {backend!r} cannot load model {name} (arguments: {others}): {redact(first)}"
            raise ModelError(text) from error
        require_whole_answers(model, args.get("think_end_token"))
        if is_transformers(backend):
            from personalitybench.backends.grouped_attention import group_queries  # noqa: PLC0415 (torch)

            group_queries(model.model)
        return model


def _model_type(backend: str) -> type[LM]:
    """Return lm-eval's class of a model type.

    Raises:
        ModelError: There is none of this name.
        MissingDependencyError: A package is missing.
    """
    try:
        if backend in MODEL_TYPES:
            import_module(MODEL_TYPES[backend])
        if backend == "vllm":
            from personalitybench.backends.vllm.versions import let_lm_eval_find_vllm  # noqa: PLC0415

            let_lm_eval_find_vllm()
        kind: type[LM] = get_model(backend)
    except (KeyError, ValueError) as error:
        raise ModelError(f"lm-eval has no model type {backend!r}: see 'lm_eval --help' for those it has") from error
    except ImportError as error:
        raise import_failure(error, f"backend {backend!r}", _extra(backend)) from error
    return kind


def _loading_errors() -> tuple[type[Exception], ...]:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415 (optional)
    except ImportError:
        return _LOADING_ERRORS
    return (*_LOADING_ERRORS, SafetensorError)


@contextmanager
def _missing_weights_refused() -> Iterator[None]:
    """Raise ``ValueError`` where transformers draws weights at random that the files lack; it only logs them."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = _STYLE.sub("", record.getMessage())
            found.extend(
                line.split()[0] for line in text.splitlines() if re.search(r"\bMISSING\b", line) and "|" in line
            )

    logger = logging.getLogger("transformers.modeling_utils")
    before, handler = (logger.level, logger.propagate), Collect()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[1]
        logger.setLevel(before[0])
    if found:
        raise ValueError(f"its files lack weights that config.json asks for, such as {found[0]}")


def plan_batches(model: LM, requests: Sequence[Instance], batch_size: int) -> list[list[int]]:
    """Cut requests into the batches that lm-eval's transformers model would form of them.

    In low precision an answer depends on its batch mates. With the same batches a run gives the answers of
    ``lm_eval``, and a resumed run those of an uninterrupted one. What a request asks for besides its prompt
    (``extra_args``) does not part it from others: backends that serve such wishes serve each row its own.

    Returns:
        Indices into ``requests``, batch by batch, longest prompts first.
    """
    encode = model.tok_encode if isinstance(model, TemplateLM) and not isinstance(model, TemplateAPI) else None

    def sort_key(item: tuple[str, dict[str, Any], int]) -> tuple[int, str]:
        return -len(encode(item[0]) if encode else item[0]), item[0]

    def settings(request: Instance) -> dict[str, Any]:
        return {key: value for key, value in request.args[1].items() if key != "extra_args"}

    items = [(request.args[0], settings(request), index) for index, request in enumerate(requests)]
    try:
        collator = Collator(items, sort_fn=sort_key, group_fn=lambda item: item[1], group_by="gen_kwargs")
        return [[item[2] for item in batch] for batch in collator.get_batched(n=batch_size)]
    except (TypeError, AttributeError) as error:
        raise drift_error("lm_eval", f"forms batches in another way ({error})") from error


def has_chat_template(model: LM) -> bool:
    """Whether prompts go to this model as the turns of a chat."""
    if isinstance(model, TemplateAPI):
        return isinstance(model, LocalChatCompletion)
    return isinstance(model, TemplateLM) and getattr(model.tokenizer, "chat_template", None) is not None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hush what lm-eval, transformers and their progress bars print while we show our own progress."""
    names = ("lm_eval", "transformers", "datasets", "accelerate", "huggingface_hub", "httpx", "httpx2")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    _set_transformers_bars(enabled=False)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        _set_transformers_bars(enabled=True)


def _set_transformers_bars(*, enabled: bool) -> None:
    try:
        from transformers.utils import logging as bars  # noqa: PLC0415 (optional)
    except ImportError:
        return
    (bars.enable_progress_bar if enabled else bars.disable_progress_bar)()


def _default_device(backend: str) -> str | None:
    """The first GPU if torch sees one, else the processor; other backends choose for themselves."""
    if not is_transformers(backend):
        return None
    import torch  # noqa: PLC0415 (heavy, and optional)

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def is_transformers(backend: str) -> bool:
    """Whether a model type runs on transformers in this process."""
    return backend in LOCAL_BACKENDS and "vllm" not in backend


def _extra(backend: str) -> str:
    if backend.startswith("hf") or backend == STEERABLE:
        return "hf"
    return "vllm" if "vllm" in backend else "api"
