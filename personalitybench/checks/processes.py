"""The same questions, asked in processes of their own with other hash seeds, from another folder.

Run as a module, this is such a process: it reads what to ask from its input and writes inductions to its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from personalitybench.checks.results import BrokenPromiseError, NotCheckedError
from personalitybench.checks.subject import Subject, Wanted, plain_data
from personalitybench.checks.workshop import Workshop
from personalitybench.errors import PersonalityBenchError
from personalitybench.methods import Artifact, methods

HASH_SEEDS = ("1", "2")
TIMEOUT = 300  # seconds; a process needs a few


def induce_elsewhere(subject: Subject) -> list[dict[tuple[str, str], Any]]:
    """Ask all questions in other processes.

    Returns:
        For each process, inductions as plain data by target and id of the question.

    Raises:
        NotCheckedError: No other process could import the class.
        BrokenPromiseError: A process failed where this one did not.
    """
    module, name = subject.kind.__module__, subject.kind.__qualname__
    if module == "__main__" or "<locals>" in name:
        raise NotCheckedError(f"class {name} of {module} cannot be imported elsewhere: put it into a module")
    wanted = subject.wanted
    job = {
        "class": [module, name],
        "name": wanted.name,
        "settings": dict(wanted.settings),
        "strength": wanted.strength,
        "seed": wanted.seed,
        "artifact": None if subject.fitted is None else str(subject.fitted.folder),
    }
    path = os.pathsep.join(str(Path(part or ".").resolve()) for part in sys.path)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=subject.workshop.root,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        )
        for seed in HASH_SEEDS
    ]
    try:
        return [_answer(process, json.dumps(job)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen[str], job: str) -> dict[tuple[str, str], Any]:
    try:
        said, complained = process.communicate(job, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise BrokenPromiseError(f"in another process, no answer came within {TIMEOUT} s") from error
    if process.returncode:
        last = complained.strip().splitlines()[-1:] or ["no reason"]
        raise BrokenPromiseError(f"what works here fails in another process, started in another folder: {last[0]}")
    return {(target, id_): induction for target, id_, induction in json.loads(said.splitlines()[-1])}


def main() -> None:
    """Answer one job."""
    job = json.load(sys.stdin)
    if job["name"] not in methods.names():
        module, name = job["class"]
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if job["name"] not in methods.names():  # its import may have registered it
            methods.register(job["name"])(found)
    wanted = Wanted(job["name"], job["settings"], job["strength"], None, seed=job["seed"])
    subject = Subject(wanted, Workshop(Path.cwd()))
    if job["artifact"] is not None:
        subject.fitted = Artifact.open(Path(job["artifact"]))
    try:
        inductions = subject.induce(subject.ready(), subject.asked)
    except (BrokenPromiseError, PersonalityBenchError) as error:
        sys.exit(" ".join(str(error).split()))
    rows = [[*place, found] for place, found in plain_data(inductions).items()]
    print(json.dumps(rows))  # noqa: T201 (the answer)


if __name__ == "__main__":
    main()
