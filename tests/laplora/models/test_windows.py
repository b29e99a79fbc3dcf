"""What the library needs of the system is what Windows has: an artifact loads there.

There is no Windows machine here. What POSIX alone has is taken away from a process that then does the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import FinishedRun

ROOT = Path(__file__).resolve().parents[3]

#: Modules of the standard library that CPython has on Unix alone (its documentation: "Availability: Unix").
UNIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
#: The same for functions and constants of ``os``.
UNIX_NAMES = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "chown", "fchdir", "fchmod", "fdatasync",
    "fork", "getegid", "geteuid", "getgid", "getpgid", "getpriority", "getuid", "killpg", "lockf", "mkfifo", "pread",
    "pwrite", "register_at_fork", "sched_getaffinity", "sendfile", "setsid", "statvfs", "sync", "sysconf", "uname",
)  # fmt: skip

#: Other packages are loaded before anything is taken from the process: what they need of this system is their own.
PROGRAM = f"""
import os, sys
import filelock, numpy, peft, pydantic, safetensors.torch, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
for name in {UNIX_MODULES!r}:
    sys.modules[name] = None
for name in {UNIX_NAMES!r}:
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "win32"
from pathlib import Path
from laplora.predictor import Predictor

cache = Path(sys.argv[2])
predictor = Predictor.load(Path(sys.argv[1]), device="cpu", cache_dir=cache)
(answer,) = predictor.predict([predictor.encode({{"text": "a fine film"}}, truncate=False)])
assert answer.logit_variance
print("answered", answer.labels[answer.label_index])
"""


def test_an_artifact_loads_where_unix_is_not(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(sentiment_run.artifact), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("answered ")
