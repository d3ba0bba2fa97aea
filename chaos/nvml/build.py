"""Builds the simulated ``libnvidia-ml.so.1`` with the C compiler of the machine; no CUDA headers are needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from chaos.nvml import layout

LIBRARY = "libnvidia-ml.so.1"
HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("nvml_sim.c", "nvml_metrics.c", "nvml_links.c", "nvml_events.c"))
_FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror")


class BuildError(RuntimeError):
    """The library cannot be built here; the message holds the compiler's words or what to install."""


def _version_script(without: Collection[str]) -> str:
    hidden = "".join(f" {name};" for name in sorted(without))
    return f"{{ global: nvml*; local:{hidden} *; }};\n"


def build(directory: Path, without: Collection[str] = ()) -> Path:
    """The directory (below ``directory``) that holds ``libnvidia-ml.so.1``, for ``LD_LIBRARY_PATH``.

    Built once per content: its name is a hash of source, layout and options, so concurrent callers may share
    ``directory``. ``without``: entry points to leave out, as in an older driver. Raises ``BuildError``.
    """
    header, script = layout.c_header(), _version_script(without)
    texts = [path.read_text() for path in (*SOURCES, HERE / "sim.h")]
    digest = hashlib.sha256("\0".join((*texts, header, script, *_FLAGS)).encode()).hexdigest()[:16]
    target = directory / f"nvml-{digest}"
    if (target / LIBRARY).exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise BuildError("the simulated NVML needs a C compiler and none is on the PATH; install gcc, or set CC")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as scratch_name:
        scratch = Path(scratch_name)
        (scratch / "layout.h").write_text(header)
        (scratch / "exports.map").write_text(script)
        command = [compiler, *_FLAGS, f"-I{scratch}", f"-I{HERE}", f"-Wl,--version-script={scratch / 'exports.map'}"]
        command += [f"-Wl,-soname,{LIBRARY}", "-o", str(scratch / LIBRARY), *map(str, SOURCES)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"CC: {compiler!r} does not run ({error}); install gcc, or set CC") from error
        if done.returncode != 0:
            raise BuildError(f"{compiler} could not build {LIBRARY} (exit {done.returncode}):\n{done.stderr[-4000:]}")
        target.mkdir(exist_ok=True)
        os.replace(scratch / LIBRARY, target / LIBRARY)
    return target


def default_directory() -> Path:
    """Where it is kept between runs: ``$XDG_CACHE_HOME/gridkeeper`` (default ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gridkeeper"


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory()))
