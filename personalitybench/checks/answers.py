"""What a method does to a real model: it acts while it is asked, and nothing of it stays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from personalitybench.backends.loading import has_chat_template, load_model, model_arguments, quiet_libraries
from personalitybench.backends.needs import capabilities_for, check_needs
from personalitybench.backends.wishes import KEY
from personalitybench.checks.results import BrokenPromiseError, NotCheckedError, describe_error
from personalitybench.checks.subject import CheckedModel, Subject
from personalitybench.errors import PersonalityBenchError
from personalitybench.methods import InductionMethod
from personalitybench.model_identity import model_record
from personalitybench.prompts import fill

GENERATION = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}


@dataclass(frozen=True)
class Plain:
    """A model as it is.

    Attributes:
        answers: To questions without any persona.
        weights: Hash of each tensor by its name; empty where the weights are in another process.
    """

    answers: list[str]
    weights: dict[str, str]


def prepare(subject: Subject, name: str) -> None:
    """Resolve the model; where the method needs more than a prompt, note what the model answers before any fit.

    Args:
        subject: What is checked.
        name: A local folder, a hub name, or ``demo``.

    Raises:
        PersonalityBenchError: There is no such model, it cannot be loaded, or its backend cannot serve the method.
    """
    wanted, needs = subject.wanted, subject.needs
    check_needs(wanted.name, needs, capabilities_for(wanted.backend, wanted.model_args), wanted.backend)
    arguments, commit = model_arguments(wanted.backend, name, None, wanted.model_args)
    record = model_record(wanted.backend, arguments, commit)
    subject.model = CheckedModel(str(arguments.get("pretrained", name)), record, arguments)
    if needs:
        model = _load(subject, subject.model)
        subject.before = Plain(_ask(model, _plain_prompts(model, subject)), _weights(model))


def model(subject: Subject) -> str:
    """What a request asks for acts on the model; plain answers and weights are the same after it, and after the fit."""
    if not subject.needs:
        raise NotCheckedError("the method asks nothing of a model but to read a prompt")
    about = subject.need_model()
    method = subject.ready()
    loaded = _load(subject, about)
    plain = _plain_prompts(loaded, subject)
    earlier, first = subject.before, Plain(_ask(loaded, plain), _weights(loaded))
    _same(earlier, first, "after the method was fitted and asked", "its fit or induce changes classes or settings")
    steered_before = getattr(loaded, "steered_tokens", None)
    requests = _steered_prompts(loaded, subject, method)
    try:
        answers = _ask(loaded, requests)
    except PersonalityBenchError as error:
        raise BrokenPromiseError(f"backend {subject.wanted.backend!r} refuses: {error}") from error
    except Exception as error:
        raise BrokenPromiseError(
            f"answering under backend {subject.wanted.backend!r} raised {describe_error(error, subject.kind)}"
        ) from error
    steered = getattr(loaded, "steered_tokens", None)
    if "intervention" in subject.needs and steered is not None and any(answers) and steered == steered_before:
        raise BrokenPromiseError("no token was steered: the intervention of these targets edits nothing")
    later = Plain(_ask(loaded, plain), _weights(loaded))
    _same(first, later, "after it answered for a target", "something of the induction stays in the model")
    counted = f", {steered - steered_before} tokens steered" if steered and "intervention" in subject.needs else ""
    return f"{len(answers)} answers under {subject.wanted.backend}{counted}; plain answers as before"


def _same(one: Plain, other: Plain, when: str, why: str) -> None:
    altered = [name for name, value in one.weights.items() if other.weights.get(name) != value]
    if altered:
        raise BrokenPromiseError(
            f"{when}, {len(altered)} tensors of the model are altered, such as {altered[0]}: {why}"
        )
    for before, after in zip(one.answers, other.answers, strict=True):
        if before != after:
            raise BrokenPromiseError(f"{when}, the model answers plain questions otherwise ({after!r:.60}): {why}")


def _load(subject: Subject, about: CheckedModel) -> Any:
    wanted = subject.wanted
    return load_model(wanted.backend, about.arguments, 4, wanted.device)


def _ask(model: Any, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    instances = [
        Instance("generate_until", {}, (prompt, {**GENERATION, **more}), idx=number, task_name="", doc_id=number)
        for number, (prompt, more) in enumerate(requests)
    ]
    with quiet_libraries():
        answers: list[str] = model.generate_until(instances, disable_tqdm=True)
    return answers


def _plain_prompts(model: Any, subject: Subject) -> list[tuple[str, dict[str, Any]]]:
    wording = subject.context().wording
    return [(_chat(model, fill(wording.plain, question=one.question)), {}) for _, one in subject.asked[:2]]


def _steered_prompts(model: Any, subject: Subject, method: InductionMethod) -> list[tuple[str, dict[str, Any]]]:
    """Two questions for both poles of a trait, as the tasks ask them."""
    asked = subject.asked[:4]
    found = subject.induce(method, asked)
    requests = []
    for target, one in asked:
        induction = found[str(target), one.id]
        extra = {"extra_args": {KEY: induction.extra_args}} if induction.extra_args else {}
        requests.append((_chat(model, induction.render(one.question)), extra))
    if not any(extra for _, extra in requests):
        raise NotCheckedError("its inductions ask nothing of a backend: see needs")
    return requests


def _chat(model: Any, turn: str) -> str:
    if not has_chat_template(model):
        return turn
    return str(model.apply_chat_template([{"role": "user", "content": turn}]))


def _weights(model: Any) -> dict[str, str]:
    """Hash of each tensor of a model in this process, without what a backend adds for adapters."""
    import torch  # noqa: PLC0415 (heavy, and optional)

    module = getattr(model, "model", None)
    if not isinstance(module, torch.nn.Module):
        return {}
    found = {}
    for name, tensor in module.state_dict().items():
        if "lora_" not in name:
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")  # as peft wraps it
            found[plain] = hashlib.sha256(data.tobytes()).hexdigest()
    return found
