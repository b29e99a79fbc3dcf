"""Structured logs: one event a line, from a closed list, with the request's id. Never prompt text."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from laplora.execution.terminal import escaped
from service.threads import frames_of

logger = logging.getLogger("laplora.service")

#: Id of the request being served, "" outside of one.
request_id: ContextVar[str] = ContextVar("laplora_request_id", default="")

#: Every event that the server logs, and when.
EVENTS = MappingProxyType(
    {
        "listening": "the socket is open; address",
        "ray_started": "a Ray cluster of this machine was started; address",
        "upstream_changed": "another model answers than the one that an artifact corrects, and its answers pass",
        "ticket_retried": "a scorer did not answer, and its rows go to another one; replica",
        "listen_failed": "the address cannot be listened on; the process leaves with status 1",
        "bad_settings": "a setting cannot be obeyed here; the process leaves with status 2",
        "stage": "start-up went on; stage, phase",
        "weights": "how the base model's weights are held; held, reason",
        "reverse_pass": "how a loaded artifact's Jacobians are computed; artifact, kind, reason",
        "token_budget": "how many padded tokens a batch of an artifact may have; artifact, tokens, reason",
        "loaded": "an artifact can be named by requests from now on; artifact, digest",
        "activated": "an artifact answers from now on where a request names none; artifact, digest",
        "conditioned": "an artifact learned from labels and its new version serves; artifact, digest, previous, rows, "
        "difference (NLL after less before, nats)",
        "conditioning_undone": "an artifact serves as it was packaged; artifact, digest, previous",
        "follow_failed": "other servers of the deployment serve an artifact, or this one did before its start, and it "
        "cannot be served now; it is tried again; artifact, code",
        "change_failed": "an artifact could not be loaded, activated or conditioned; change, artifact, code",
        "shadow_better": "a candidate in the shadow is better by the rule that was stated; artifact, reason",
        "unloaded": "an artifact takes no new requests; artifact, digest",
        "keys_read": "the file of API keys changed and was read again; keys (how many)",
        "keys_refused": "the file of API keys cannot be used: the server does not start, or the last good keys stay",
        "auth_off": "no API key is asked for, and other machines can reach the server",
        "load_failed": "the artifact to serve first cannot be served; the process leaves with a status that is not 0",
        "request": "a request was answered: method, route, status, duration_ms, caller; code of a refusal; artifact, "
        "digest, predictive, rows, tokens and the stages' times of a scored one",
        "keep_alive_ignored": "Ray Serve ran already and closes idle connections before keep_alive_s",
        "head_timeout": "a connection was closed because a request's head did not come in time (at level debug)",
        "send_timeout": "a connection was closed because its client did not take an answer in time (at level debug)",
        "connection_refused": "a connection was one too many, of its address or of all (at level debug)",
        "batch_failed": "a batch did not run on the device and is tried again in halves; rows, outcome, error",
        "device_fault": "the device or its thread failed, or a run of it took more than hang_s: requests get 503, the "
        "process leaves; error, frames",
        "crash": "a fault of the server: error (a type), frames (where), never the exception's message",
        "watcher_failed": "metrics or traces failed, for the first time in this way; answers go on; watcher, error, "
        "frames",
        "load_given_up": "an artifact did not load within load_timeout_s; artifact",
        "load_ended_late": "a load that was given up has ended, and its memory is free; artifact",
        "leaving": "SIGTERM came: readiness fails from now on, requests are still answered; delay_s",
        "draining": "SIGTERM or Ctrl-C came: no new requests from now on; in_flight",
        "jobs_folder": "the folder of large evaluations is open; jobs_dir, queued",
        "jobs_unavailable": "the folder of large evaluations cannot be used; the server goes on without and tries "
        "again; jobs_dir, files (names of others' files)",
        "jobs_store_failed": "the store of uploads does not answer; jobs wait for it",
        "job_claim_lost": "a job is another server's by now, or has ended: it runs no more here; job, rows_done",
        "download_cut_off": "a download of a job's rows took longer than it may; it can go on after its last row",
        "job_queued": "an upload is on disk; job, rows",
        "job_left": "this server has not what a job needs, and leaves it to another one; job, code of what is missing",
        "job_paused": "a job waits and goes on by itself; job, code of what it was refused with",
        "job_row_given_up": "a row is left out: it ran at several unclean ends of the server, alone at the last; job, "
        "row (from 0), tries",
        "job_ended": "a job is done, failed or cancelled; job, status, rows_done, rows_bad, code of a failure",
        "stopped": "the process leaves; status",
    }
)

_encode = json.JSONEncoder(default=str).encode
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


def log_crash(what: str, error: BaseException, instead: Mapping[str, str] = MappingProxyType({})) -> None:
    """Log an unexpected exception by its type and frames: its message may hold a client's text.

    The line itself names type and last frame, for whoever reads it without the fields.

    Args:
        instead: another event, with its own fields.
    """
    kind, frames = type(error).__name__, frames_of(error)
    logger.error(
        "%s: %s at %s", what, kind, frames[-1:], extra={"event": "crash", "error": kind, "frames": frames, **instead}
    )


class JsonFormatter(logging.Formatter):
    """One JSON object per event: time (UTC), level, logger, message, request_id, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        return _encode(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
                **_fields(record),
            }
        )


class TextFormatter(logging.Formatter):
    """One line of text per event, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of text."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        message = " ".join(record.getMessage().split("\n"))
        return escaped(f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {message}  {fields}".rstrip())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"request_id": request_id.get()} if request_id.get() else {}
    fields.update({name: value for name, value in record.__dict__.items() if name not in _STANDARD})
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = type(record.exc_info[1]).__name__
        fields["frames"] = frames_of(record.exc_info[1])
    return fields


def configure_logging(level: str, log_format: str) -> None:
    """Send the service's, the library's and uvicorn's logs to standard error in one format.

    Python's warnings and exceptions that end a thread go there too: every line is an event.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    threading.excepthook = _thread_crashed
    logging.getLogger("laplora").setLevel(level.upper())
    # uvicorn's own lines repeat ours, except when something is wrong.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _thread_crashed(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None and not isinstance(crash.exc_value, SystemExit):
        log_crash(f"thread {'?' if crash.thread is None else crash.thread.name} ended", crash.exc_value)
