"""A job in processes that Ray Train starts, on this machine or on a cluster.

Each process finds what torchrun would have told it in its environment (``training.workspace.launcher``), and from there
on the job is the same: rows, results, checkpoints and the way a stopped run continues.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from laplora.errors import ConfigError, LaploraError, first_line, warnings_said
from laplora.execution.ray_cluster import cluster, import_ray, machines
from training.workspace.launcher import launched_rank
from training.workspace.terminal import say

#: How long gradients wait for a process, as for the first one while it writes a checkpoint.
TIMEOUT_S = 3600


@dataclass(frozen=True)
class RayProcesses:
    """The resources that Ray Train is asked for.

    Attributes:
        count: processes; threads: processors that each has, and threads of torch in it.
    """

    count: int
    threads: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.threads < 1:
            raise ConfigError("--workers and --threads are at least 1")


def run_by_ray(work: Callable[[], object], device: str, processes: RayProcesses) -> None:
    """Do a job's work in processes of Ray Train, and return when all have ended.

    Each process works in this one's folder, so that its relative paths mean the same. Ray is started on this machine,
    and stopped in the end, unless ``RAY_ADDRESS`` names a cluster.

    Args:
        work: is pickled; device: ``auto``, ``cpu`` or ``cuda``. Each process has a GPU of its own, except on ``cpu``,
            and with ``auto`` on a cluster that has none.

    Raises:
        ConfigError: one GPU by its number; Ray is not installed, cannot be reached, or has not the GPUs and processors
            that the processes take.
        LaploraError: what a process raised, by its message; or that a process ended.
        KeyboardInterrupt: the user ended it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"base.device: {device} is one device, and processes of Ray take one each: use cuda or auto")
    ray = import_ray("ray.train.torch")
    with cluster(processes.count * processes.threads, show_output=True), _quiet_trainer(), _interruptible():
        ray_machines = machines(ray)
        gpus = sum(machine.gpus for machine in ray_machines)
        on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
        if on_gpu and gpus < processes.count:
            raise ConfigError(
                f"{processes.count} processes need a GPU each, and Ray has {gpus}: set base.device to cpu, or start "
                "fewer"
            )
        usable = [one for one in ray_machines if one.gpus or not on_gpu]
        places = [min(one.cpus // processes.threads, one.gpus if on_gpu else one.cpus) for one in usable]
        if sum(places) < processes.count:  # Ray Train would wait for more, and say nothing
            where, most = " of machines with a GPU" if on_gpu else "", max((one.cpus for one in usable), default=0)
            raise ConfigError(
                f"--workers {processes.count} with --threads {processes.threads} are asked for, and Ray has room for "
                f"{sum(places)} of them: {sum(one.cpus for one in usable)} processors{where}, {most} at most on one "
                "machine"
            )
        with tempfile.TemporaryDirectory(prefix="laplora-ray-") as unused:  # Ray keeps results of its own there
            trainer = ray.train.torch.TorchTrainer(
                _process,
                train_loop_config={"work": work, "folder": os.getcwd(), "threads": processes.threads},
                torch_config=ray.train.torch.TorchConfig(
                    backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s=TIMEOUT_S
                ),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=processes.count,
                    use_gpu=on_gpu,
                    resources_per_worker={"CPU": processes.threads} | ({"GPU": 1} if on_gpu else {}),
                ),
                run_config=ray.train.RunConfig(
                    name="laplora",
                    storage_path=unused,
                    logging_config=ray.train.LoggingConfig("WARNING"),
                    worker_runtime_env={"env_vars": {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}},
                ),
            )
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise _told(error) from error
            except ray.exceptions.RayError as error:
                raise LaploraError(f"Ray gave up, and what is finished is kept: {first_line(error)[:400]}") from error


@warnings_said(say)
def _process(options: dict[str, Any]) -> None:
    """Do the work in one process of Ray Train."""
    import ray.train.torch
    import torch

    from training.workspace.processes import leave

    os.chdir(options["folder"])
    torch.set_num_threads(options["threads"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":  # of the node's GPUs that the job has, Ray gave this one; not always in the ranks' order
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        options["work"]()
    except LaploraError as error:  # by its message: not every class of these can be pickled
        raise LaploraError(f"in process {launched_rank()}: {error}" if launched_rank() else str(error)) from None
    finally:
        leave()


def _told(error: Any) -> LaploraError:
    """Return what a process raised: an error of laplora's first, then the end of a process.

    Who loses a peer has an error of its own, which says nothing.
    """
    failures = sorted(getattr(error, "worker_failures", {}).items(), key=lambda one: (_rank_of(one[1]), one[0]))
    if failures and isinstance(failures[0][1], LaploraError):
        return failures[0][1]
    who, failure = (f"process {failures[0][0]}", failures[0][1]) if failures else ("Ray", error)
    return LaploraError(
        f"{who} ended ({type(failure).__name__}: {first_line(failure)[:400]}); what is finished is kept, and the same "
        "command continues"
    )


def _rank_of(failure: Exception) -> int:
    if isinstance(failure, LaploraError):
        return 0
    return 1 if type(failure).__module__.startswith("ray.") else 2  # Ray's say that a process is no longer there


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    """Leave out what Ray Train logs of itself in this process."""
    logger = logging.getLogger("ray.train")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt after all processes have ended, and then again what it was."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if here else None
    try:
        yield
    except SystemExit as ended:  # Ray's own way
        raise KeyboardInterrupt from ended
    finally:
        if here:
            signal.signal(signal.SIGINT, before)
