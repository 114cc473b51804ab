"""Two of the three ways into lm-eval: its own command line with our tasks, and tasks copied into its package.

(The third needs nothing of us: ``lm_eval --include_path "$(personalitybench tasks)"``.)
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from personalitybench.argument_policy import refuse_secrets_in_text
from personalitybench.backends.needs import MODEL_TYPES
from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.files import sha256_file
from personalitybench.resources import bundled
from personalitybench.task_options import ANSWER_CACHE
from personalitybench.versions import import_failure

_FOLDER = "personalitybench"
_LIST = "INSTALLED_FILES"


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run ``lm_eval`` in this process with ``--include_path`` set to our tasks.

    Raises:
        ConfigurationError: ``--include_path`` was given: lm-eval takes one. An argument is a secret, or lm-eval's cache
            of answers is on.
    """
    given = list(arguments)
    for option, short in (("--model_args", "-a"), ("--metadata", "")):
        for text in _values(given, option, short):
            refuse_secrets_in_text(text, option)
    if any(_values(given, "--use_cache", "-c")):
        raise ConfigurationError(ANSWER_CACHE)
    if any(argument.split("=")[0] == "--include_path" for argument in given):
        raise ConfigurationError(
            "personalitybench lm-eval sets --include_path itself and lm-eval takes one: for tasks of your own use "
            "plain lm_eval after 'personalitybench install-tasks'"
        )
    try:
        from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415
    except ImportError as error:
        raise import_failure(error, "personalitybench lm-eval", "hf") from error
    import personalitybench.tasks  # noqa: F401, PLC0415 (registers the judge filter)

    if "vllm" in given:
        from personalitybench.backends.vllm.versions import let_lm_eval_find_vllm  # noqa: PLC0415

        let_lm_eval_find_vllm()
    for name, module in MODEL_TYPES.items():
        if any(name in argument for argument in given):
            import_module(module)

    evaluating = "--tasks" in given or any(argument.startswith("--tasks=") for argument in given)
    sys.argv = ["lm_eval", *given, *(["--include_path", str(bundled("tasks"))] if evaluating else [])]
    cli_evaluate()


def _values(arguments: Sequence[str], option: str, short: str) -> Iterator[str]:
    """Yield the values of an option of lm-eval, which may be shortened as argparse allows."""
    least = len(option.partition("_")[0]) + 2  # '--model_a', as '--model' is another option
    reading = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if reading and not argument.startswith("-"):
            yield argument
            continue
        reading = name in {option, short} or (len(name) >= least and option.startswith(name))
        if reading and equals:
            yield value
        elif short and argument.startswith(short) and not argument.startswith("--") and argument != short:
            yield argument.removeprefix(short)


def lm_eval_tasks_folder() -> Path:
    """Folder of the installed lm-eval's tasks.

    Raises:
        ConfigurationError: lm-eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ConfigurationError("lm-eval is not installed here: pip install lm-eval")
    return Path(spec.origin).parent / "tasks"


def install_tasks() -> str:
    """Copy our task files into the installed lm-eval; running it again brings them up to date.

    Returns:
        What was done, for the user.

    Raises:
        ConfigurationError: Another folder of that name is there.
        StorageError: The folder cannot be written.
    """
    folder = lm_eval_tasks_folder() / _FOLDER
    if folder.exists() and not (folder / _LIST).is_file():
        raise ConfigurationError(f"{folder} was not made by install-tasks: move it away first")
    uninstall_tasks()
    copied = []
    try:
        for source in sorted(bundled("tasks").rglob("*.yaml")):
            name = source.relative_to(bundled("tasks"))
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.append(f"{sha256_file(target)}  {name.as_posix()}")
        (folder / _LIST).write_text("\n".join(copied) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {folder} ({error.strerror}): use --include_path instead") from error
    return f"{len(copied)} task files are in {folder}; --uninstall takes them away"


def uninstall_tasks() -> str:
    """Remove exactly the files that :func:`install_tasks` put there; files that were altered since are kept.

    Returns:
        What was done, for the user.
    """
    folder = lm_eval_tasks_folder() / _FOLDER
    listing = folder / _LIST
    if not listing.is_file():
        return f"nothing to take away: {folder} was not made by install-tasks"
    kept = []
    for line in listing.read_text().splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if path.is_file():
            if sha256_file(path) == digest:
                path.unlink()
            else:
                kept.append(name)
    listing.unlink()
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if path.name == "__pycache__":
            shutil.rmtree(path)
        elif not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()
    return f"the task files are taken out of {folder.parent}" + (
        f"; kept, as altered: {', '.join(kept)}" if kept else ""
    )
