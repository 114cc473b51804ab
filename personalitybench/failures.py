"""One line for each exception that ends a command: what failed, where, what to do; and the exit status.

``cli.main`` calls :func:`describe_failure`. Libraries are known by the names of their exception classes, so that
nothing is imported for it.
"""

from __future__ import annotations

import errno
import linecache
import os
import re
import textwrap
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from personalitybench.errors import PersonalityBenchError
from personalitybench.redaction import hide_keys, redact
from personalitybench.versions import import_failure, untried_versions

TRACEBACK_VARIABLE = "PERSONALITYBENCH_TRACEBACK"

USER_ERROR = 2
DEFECT = 1

_PACKAGE = __name__.partition(".")[0]
_PRINTERS = {"rich", "click", "typer"}  # packages that write to the terminal
_PLUGIN_GROUPS = ("personalitybench.methods", "personalitybench.judges")
_HOW_TO_SEE = f"{TRACEBACK_VARIABLE}=1 shows the traceback"
_AGAIN = "then run this again: what is finished is kept"

_ADVICE: dict[int, str] = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "name a file or folder that you may use, or change its permissions",
    errno.EPERM: "name a file or folder that you may use, or change its permissions",
    errno.EROFS: "name a folder that can be written",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "mend the loop of links",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free some memory",
    errno.EISDIR: "name a file instead",
    errno.ENOTDIR: "name a folder instead",
    errno.ENOENT: "check the path",
    errno.EBADF: "do not close standard input or output",
}

# Exceptions of libraries, by the first part of their module and the name of a base class.
_LIBRARY_ERRORS: dict[str, str] = {
    "sqlite3.Error": "check that the file of the store is a readable database on a healthy disk",
    "builtins.SafetensorError": "the file of weights is damaged or incomplete: fetch or write it again",
    "safetensors_rust.SafetensorError": "the file of weights is damaged or incomplete: fetch or write it again",
    "safetensors.SafetensorError": "the file of weights is damaged or incomplete: fetch or write it again",
    "jinja2.TemplateError": "correct the template",
    "re.error": "correct the regular expression",
    "re.PatternError": "correct the regular expression",
    "requests.RequestException": "check the network, proxies and certificates",
    "urllib3.HTTPError": "check the network, proxies and certificates",
    "httpx.HTTPError": "check the network, proxies and certificates",
    "httpx2.HTTPError": "check the network, proxies and certificates",
    "httpx.InvalidURL": "correct the address",
    "httpx2.InvalidURL": "correct the address",
    "openai.OpenAIError": "check the server, its key and the network",
    "aiohttp.ClientError": "check the server, proxies and certificates",
    "ssl.SSLError": "check SSL_CERT_FILE and the certificates of this machine",
    "socket.gaierror": "check the network and the name of the host",
    "huggingface_hub.HfHubHTTPError": "check the network, HF_ENDPOINT and HF_TOKEN",
    "zipfile.BadZipFile": "the file is damaged: fetch it again",
    "yaml.YAMLError": "correct the YAML",
    "pyarrow.ArrowException": "the file of a table is damaged: delete it, it is made again",
    "datasets.DatasetsError": "the file of a table is damaged: delete it, it is made again",
    "torch.OutOfMemoryError": "lower batch_size, or choose a smaller dtype or model",
    "builtins.MemoryError": "free some memory, or lower batch sizes and limits",
    "builtins.RecursionError": "a file or setting is nested too deeply: make it flatter",
    "builtins.UnicodeError": "write the file or text as UTF-8",
}


def describe_failure(error: BaseException) -> tuple[str, int]:
    """Return the line for an exception that ended a command, and the exit status.

    Args:
        error: Anything but ``SystemExit`` and ``KeyboardInterrupt``.

    Returns:
        Status 2 where the user can mend it, 1 for a defect of this package.
    """
    if isinstance(error, BaseExceptionGroup):
        return describe_failure(error.exceptions[0])
    for describe in (_describe_ours, _describe_plugin, _describe_variable, _describe_library, _describe_os_error):
        if (text := describe(error)) is not None:
            return text, USER_ERROR
    untried = untried_versions()
    version = f"; it may come from a version that was not tried: {'; '.join(untried)}" if untried else ""
    return f"defect: {_said(error)} ({_place(error)}): please report this{version} ({_HOW_TO_SEE})", DEFECT


def is_from_console(error: OSError) -> bool:
    """Whether output to the terminal or a pipe failed."""
    frames = _frames(error)
    return error.filename is None and bool(frames) and frames[0][0].partition(".")[0] in _PRINTERS


def wants_traceback() -> bool:
    """Whether the user asked for the traceback of an error."""
    return os.environ.get(TRACEBACK_VARIABLE, "").strip().lower() not in {"", "0", "false", "no", "off"}


def format_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, without secrets."""
    return str(redact("".join(traceback.format_exception(error)).rstrip()))


def _describe_ours(error: BaseException) -> str | None:
    if not isinstance(error, PersonalityBenchError):
        return None
    return hide_keys(str(error))  # it may quote a server, a plug-in or a library


def _describe_plugin(error: BaseException) -> str | None:
    """Name the plug-in that an exception came through, the innermost where there are several."""
    points = {point.module: point for group in _PLUGIN_GROUPS for point in entry_points(group=group) if point.dist}
    packages = {module.partition(".")[0]: point for module, point in points.items()}
    for module, line in _frames(error):
        point = points.get(module) or packages.get(module.partition(".")[0])
        if point is not None and point.dist is not None:
            kind = point.group.rpartition(".")[2].removesuffix("s")
            return (
                f"{kind} '{point.dist.name}/{point.name}' of the package {point.dist.name} {point.dist.version} failed "
                f"at {module}:{line}: {_said(error)}: report this to its authors ({_HOW_TO_SEE})"
            )
    return None


def _describe_variable(error: BaseException) -> str | None:
    """Name a set environment variable that a library's line reads, and whose value the error quotes."""
    text = str(error)
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
            continue
        for name in re.findall(r"\b[A-Z][A-Z0-9_]{3,}\b", linecache.getline(frame.f_code.co_filename, line)):
            value = os.environ.get(name)
            if value and value in text:
                setting = redact(f"{name}={value}")
                return f"the environment variable {setting} cannot be used ({_said(error)}): correct or unset it"
    return None


def _describe_library(error: BaseException) -> str | None:
    if isinstance(error, ImportError) and re.search("failed to map segment|annot allocate memory", str(error)):
        return f"{_said(error)}: free some memory, {_AGAIN}"
    if isinstance(error, ImportError):
        return str(import_failure(error, "this command", "hf"))
    for base in type(error).__mro__:
        advice = _LIBRARY_ERRORS.get(f"{base.__module__.partition('.')[0]}.{base.__name__}")
        if advice is not None:
            return f"{_said(error)} ({_place(error)}): {advice}, {_AGAIN}"
    return None


def _said(error: BaseException) -> str:
    text = redact(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _describe_os_error(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    if is_from_console(error):
        return f"cannot write standard output ({error.strerror}): name another file or pipe, {_AGAIN}"
    if error.errno == errno.ENOENT and not _has_current_folder():
        return "the current folder does not exist any more: change to another one, then run this again"
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    where = " -> ".join(textwrap.shorten(name, 200) for name in names) or _place(error)
    advice = _ADVICE.get(error.errno or 0, "check the file or folder, and the network")
    return f"{reason} ({where}): {advice}, {_AGAIN}"


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """Module and line of each frame, the innermost first."""
    frames = [(each.f_globals.get("__name__", ""), line) for each, line in traceback.walk_tb(error.__traceback__)]
    return frames[::-1]


def _place(error: BaseException) -> str:
    """The innermost line of this package, or of whatever raised it."""
    frames = _frames(error)
    ours = next((frame for frame in frames if frame[0].partition(".")[0] == _PACKAGE), None)
    module, line = ours or next(iter(frames), ("unknown module", 0))
    return f"{module}:{line}"
