"""The shipped nginx configuration, run by the real nginx in front of the real server process."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
import yaml
from proxy_process import (
    COMPOSE,
    TEMPLATE,
    Proxy,
    certify,
    defaults,
    filled_in,
    free_port,
    needs_nginx,
    proxy_before,
)
from server_process import ROOT, metric, starting, until
from serving import name_the_caller, settings

from service.__main__ import server_config
from service.errors import ERROR_KINDS
from service.http.schemas.errors import ErrorResponse
from service.security.access import ACCESS
from service.settings import Settings

#: What nginx alone says, beside codes of the server's own table.
PROXY_CODES = {"server_unreachable": 503}
#: Another caller than the ordinary one, who comes from 127.0.0.1.
SLOW = "127.0.0.2"


class Server:
    """The real process; ``hold`` keeps its device from answering until ``release``."""

    def __init__(self, client: httpx.Client, gate: Path) -> None:
        self.client, self._gate = client, gate
        self.port = urlsplit(str(client.base_url)).port or 0

    def hold(self) -> None:
        self._gate.unlink()

    def release(self) -> None:
        self._gate.touch()

    def metric(self, name: str) -> float:
        return metric(self.client, name)

    @property
    def in_flight(self) -> float:
        """Requests being answered, without the one that asks."""
        return self.metric("laplora_requests_in_flight") - 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "gate").touch()
    with starting(folder) as start:
        process = start("--trusted-proxies", "127.0.0.1", FAKE_GATE=str(folder / "gate"))
        with process.client() as client:
            yield Server(client, folder / "gate")


@pytest.fixture
def busy(server: Server) -> Iterator[Server]:
    """The server while its device answers nothing."""
    server.hold()
    try:
        yield server
    finally:
        server.release()


def ask(client: httpx.Client, text: str = "a", **headers: str) -> httpx.Response:
    return client.post("/predict", json={"inputs": [{"text": text}]}, headers=headers)


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    found = ErrorResponse.model_validate(response.json())
    assert (response.status_code, found.error.code) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == found.request_id
    assert response.headers["strict-transport-security"]
    assert ("retry-after" in response.headers) == (status in (429, 503, 504))


@contextmanager
def upstream(answer: Callable[[socket.socket, bytes], None]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the port of a server that reads a request's head and leaves the rest to ``answer``; and all heads."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one(connection: socket.socket) -> None:
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (more := connection.recv(65536)):
                    head += more
                if head:
                    heads.append(head)
                    answer(connection, head)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.submit(one, connection)

        with ThreadPoolExecutor(16) as connections:
            accepting = threading.Thread(target=accept)
            accepting.start()
            try:
                yield listener.getsockname()[1], heads
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()


# What the files say.


def test_every_value_of_the_template_has_a_default_in_compose() -> None:
    named = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text(encoding="utf-8")))
    assert named == set(defaults())


@needs_nginx
@pytest.mark.skipif(shutil.which("envsubst") is None, reason="envsubst is not installed here")
def test_the_commands_of_the_readme_fill_in_the_template(tmp_path: Path) -> None:
    """As they stand but for the server, the folder of bodies, and nginx, which is only asked whether it is content."""
    page = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^Without Docker.*\n```sh\n(python -m service .* &\n[^`]+)```", page, re.M)
    _, *commands = block.replace("/tmp/laplora-proxy", str(tmp_path / "bodies")).splitlines()
    commands[-1], started, _ = commands[-1].partition(" && nginx ")
    assert started
    (tmp_path / "docker").symlink_to(COMPOSE.parent)
    certify(tmp_path)
    # Of root's environment: where nginx is.
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    script = "set -e\n" + "\n".join(commands)
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    own = {"UPSTREAM": "127.0.0.1:8000", "TEMP": str(tmp_path / "bodies")}
    own |= {"CERTIFICATE": str(tmp_path / "tls.crt"), "CERTIFICATE_KEY": str(tmp_path / "tls.key")}
    values = defaults() | {f"PROXY_{name}": value for name, value in own.items()}
    assert (tmp_path / "nginx.conf").read_text(encoding="utf-8") == filled_in(values)


def test_the_values_fit_the_servers_own() -> None:
    values, own = defaults(), Settings()
    assert int(values["PROXY_MAX_BODY_BYTES"]) == own.max_body_bytes
    assert int(values["PROXY_MAX_JOB_BYTES"]) == getattr(own, "max_job_bytes", 256 * 2**20)
    assert float(values["PROXY_ANSWER_TIMEOUT_S"]) > own.request_timeout_s
    (keep,) = re.findall(r"^\s+keepalive_timeout (\d+)s;\n    \}", TEMPLATE.read_text(encoding="utf-8"), re.M)
    assert float(keep) < uvicorn.Config(lambda: None).timeout_keep_alive


def test_compose_puts_the_proxy_where_the_server_believes_it() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    base = yaml.safe_load((COMPOSE.parent / "compose.yaml").read_text(encoding="utf-8"))["services"]
    proxy, values = services.pop("proxy"), defaults()
    assert set(services) == set(base) == set(proxy["profiles"]) == set(proxy["depends_on"])
    for service in services.values():
        trusted = Settings(trusted_proxies=service["environment"]["LAPLORA_TRUSTED_PROXIES"]).trusted_proxies
        assert trusted == f"{proxy['networks']['inside']['ipv4_address']}/32"
        assert values["PROXY_UPSTREAM"] == f"{service['networks']['inside']['ipv4_address']}:{Settings().port}"
    assert proxy["ports"][0].endswith(f":{values['PROXY_PORT']}")
    template, certificates = ((volume["source"], volume["target"]) for volume in proxy["volumes"])
    assert (COMPOSE.parent / template[0]).samefile(TEMPLATE)
    assert f"{proxy['environment']['NGINX_ENVSUBST_OUTPUT_DIR']}/{Path(template[1]).stem}" in proxy["command"]
    for name in ("PROXY_CERTIFICATE", "PROXY_CERTIFICATE_KEY"):
        assert Path(values[name]).parent == Path(certificates[1])
    assert proxy["read_only"]
    assert [mount.partition(":")[0] for mount in proxy["tmpfs"]] == [values["PROXY_TEMP"]]


def test_all_bodies_at_their_limit_fit_the_folder_for_bodies() -> None:
    (mount,) = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["proxy"]["tmpfs"]
    (mebibytes,) = re.findall(r":size=(\d+)m,", mount)
    values = {name: int(value) for name, value in defaults().items() if value.isdigit()}
    bodies = values["PROXY_BODIES"] * values["PROXY_MAX_BODY_BYTES"]
    uploads = values["PROXY_UPLOADS"] * values["PROXY_MAX_JOB_BYTES"]
    assert values["PROXY_UPLOADS"] >= 4
    assert bodies + uploads < int(mebibytes) * 2**20
    # Answers must not be there too: those of results have no limit.
    assert "proxy_max_temp_file_size 0;" in TEMPLATE.read_text(encoding="utf-8")


def test_codes_are_the_servers_with_the_same_status_or_the_proxys_own() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    (table,) = re.findall(r"map \$status \$error_code \{(.*?)\}", text, re.S)
    sent = dict(line.rstrip(";").split() for line in table.strip().splitlines())
    known = {kind.code: kind.status for kind in ERROR_KINDS} | PROXY_CODES
    assert sent.pop("default") == "malformed_http"
    assert {code: int(status) for status, code in sent.items()} == {code: known[code] for code in sent.values()}
    (messages,) = re.findall(r"map \$status \$error_message \{(.*?)\n    \}", text, re.S)
    assert set(re.findall(r"^\s+(\d+|default) ", messages, re.M)) == {*sent, "default"}


# What nginx does.


@needs_nginx
def test_ordinary_requests_pass_with_their_id_over_tls(server: Server) -> None:
    with proxy_before(server.port) as proxy, proxy.client() as client:
        answer = ask(client, "row 4321", **{"x-request-id": "mine:1"})
        assert answer.status_code == 200
        assert round(answer.json()["predictions"][0]["map_probs"]["negative"] * 100_000) == 4321
        assert answer.headers.get_list("x-request-id") == ["mine:1"]
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        made = ask(client, "row", **{"x-request-id": 'not "sane"'}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
        # The server's own errors stay what they are.
        refused = client.post("/predict", json={"inputs": []})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "inputs")
        assert client.get("/nope").json()["error"]["code"] == "route_not_found"
        assert client.get("/health/ready").status_code == 200


@needs_nginx
def test_prompts_are_neither_logged_nor_left_behind(server: Server) -> None:
    with proxy_before(server.port) as proxy, proxy.client() as client:
        long = "zebra-secret " * 20_000
        assert client.post("/predict?q=zebra-secret", json={"inputs": [{"text": long}]}).status_code == 422
        until(lambda: '"path": "/predict"' in proxy.log)
        assert "zebra-secret" not in proxy.log
        left = [path for name in ("bodies", "answers") for path in (proxy.folder / name).rglob("*") if path.is_file()]
        assert left == []


@needs_nginx
def test_bodies_above_the_limit_are_413_and_never_reach_the_server() -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < length:
            got += len(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    sizes = {"MAX_BODY_BYTES": 200_000, "MAX_JOB_BYTES": 600_000}
    with upstream(answer) as (port, heads), proxy_before(port, **sizes) as proxy, proxy.client() as client:
        for path, limit in (("/predict", 200_000), ("/evaluate/jobs", 600_000)):
            heads.clear()
            announced = client.post(path, content=b" " * (limit + 1))
            chunked = client.post(path, content=iter([b" " * 50_000] * (limit // 50_000 + 1)))
            for response in (announced, chunked):
                assert_error(response, 413, "body_too_large")
                assert response.json()["error"]["limit"] == limit
            assert announced.json()["error"]["got"] == limit + 1
            assert "got" not in chunked.json()["error"]
            assert heads == []
            assert client.post(path, content=b" " * limit).status_code == 200


def drip(proxy: Proxy, begin: bytes, drop: bytes, drops: int | None) -> bytes:
    """Send ``begin``, then ``drop`` every 20 ms, ``drops`` times or for ever; return what comes until the close."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), source_address=(SLOW, 0))
    with proxy.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        try:
            connection.sendall(begin)
            connection.settimeout(0.02)
            while True:
                try:
                    if answer := connection.recv(65536):
                        return answer
                    return b""
                except TimeoutError:
                    if drops != 0:
                        connection.sendall(drop)
                        drops = None if drops is None else drops - 1
        except (ConnectionError, ssl.SSLError):
            return b""


ENDLESS_HEAD = (b"POST /predict HTTP/1.1\r\nhost: a\r\nx: ", b"a", None)
STALLED_BODY = (
    b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{",
    b" ",
    20,
)


@needs_nginx
def test_slow_clients_are_closed_and_the_server_never_sees_them(server: Server) -> None:
    short = {
        "HEAD_TIMEOUT_S": 2,
        "BODY_TIMEOUT_S": 1,
        "CONNECTIONS": 40,
        "BODIES_OF_ONE": 40,
        "REQUESTS_PER_S": 1000,
        "BURST": 1000,
    }
    # So that there is a count of them.
    assert ask(server.client).status_code == 200
    before = server.metric('laplora_requests_total{method="POST",route="/predict",status="200"}')
    with (
        proxy_before(server.port, **short) as proxy,
        proxy.client() as client,
        ThreadPoolExecutor(200) as pool,
    ):
        # 100 that send a head for ever, and 100 that begin a body and stop: of these, 40 fit the limit of an address.
        slow = [pool.submit(drip, proxy, *(ENDLESS_HEAD, STALLED_BODY)[i % 2]) for i in range(200)]
        answered = 0
        while not all(future.done() for future in slow):
            assert ask(client, "row 77").status_code == 200
            answered += 1
            assert server.in_flight == 0
        said = [future.result() for future in slow]
        assert server.metric('laplora_requests_total{method="POST",route="/predict",status="200"}') == before + answered
    assert set(said[0::2]) == {b""}
    assert {answer.split(b"\r\n")[0] for answer in said[1::2]} <= {b"", b"HTTP/1.1 429 Too Many Requests"}
    refused = sum(answer != b"" for answer in said[1::2])
    assert 0 < refused <= 60


@needs_nginx
def test_a_patient_body_never_reaches_the_server_and_holds_one_of_its_addresses_connections(server: Server) -> None:
    def be_patient() -> None:
        # Refused while the other client's request is the one that may be; in the end closed by nginx as it leaves.
        while drip(proxy, *STALLED_BODY[:2], None):
            continue

    with ThreadPoolExecutor(1) as pool, proxy_before(server.port, BODY_TIMEOUT_S=60, CONNECTIONS=1) as proxy:
        patient = pool.submit(be_patient)
        with proxy.client(source=SLOW) as same, proxy.client() as other:
            until(lambda: ask(same).status_code == 429)
            assert_error(ask(same), 429, "too_many_requests")
            assert ask(other).status_code == 200
            assert server.in_flight == 0
            assert not patient.done()


@contextmanager
def begun(proxy: Proxy, path: str, source: str) -> Iterator[Callable[[], httpx.Response]]:
    """Yield a POST of 400,000 bytes of which half are sent; calling it sends the rest and returns the answer."""
    half = b" " * 200_000
    raw = socket.create_connection(("127.0.0.1", proxy.port), source_address=(source, 0))
    with proxy.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {2 * len(half)}\r\n\r\n"
        connection.sendall(head.encode() + half)

        def finish() -> httpx.Response:
            connection.sendall(half)
            return parsed(received(connection))

        yield finish


def take_a_body(connection: socket.socket, head: bytes) -> None:
    """Read a body to its end, and answer 204."""
    left = sum(int(found) for found in re.findall(rb"(?i)content-length: (\d+)", head))
    left -= len(head.partition(b"\r\n\r\n")[2])
    while left > 0:
        left -= len(connection.recv(65536))
    connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")


@needs_nginx
@pytest.mark.parametrize(
    ("path", "limit", "other"), [("/evaluate/jobs", "UPLOADS", "/predict"), ("/predict", "BODIES", "/evaluate/jobs")]
)
def test_bodies_of_all_addresses_together_are_bounded(path: str, limit: str, other: str) -> None:
    with (
        upstream(take_a_body) as (port, _),
        proxy_before(port, BODY_TIMEOUT_S=60, **{limit: 2}) as proxy,
        begun(proxy, path, "127.0.0.2") as first,
        begun(proxy, path, "127.0.0.3") as second,
        proxy.client(source="127.0.0.4") as third,
    ):
        until(lambda: third.post(path, content=b" ").status_code == 429)
        assert_error(third.post(path, content=b" " * 300_000), 429, "too_many_requests")
        # What has no body takes no room, and the other kind has room of its own.
        assert third.get(path).status_code == 204
        assert third.post(other, content=b" " * 300_000).status_code == 204
        assert first().status_code == 204
        until(lambda: third.post(path, content=b" " * 300_000).status_code == 204)
        assert second().status_code == 204


@needs_nginx
@pytest.mark.parametrize(("path", "limit"), [("/evaluate/jobs", "UPLOADS_OF_ONE"), ("/predict", "BODIES_OF_ONE")])
def test_one_address_has_few_of_the_bodies_however_slowly_it_sends_them(path: str, limit: str) -> None:
    most = int(defaults()[f"PROXY_{limit}"])
    with (
        upstream(take_a_body) as (port, _),
        proxy_before(port, BODY_TIMEOUT_S=60) as proxy,
        ExitStack() as stack,
        proxy.client(source=SLOW) as same,
        proxy.client(source="127.0.0.3") as other,
    ):
        finishes = [stack.enter_context(begun(proxy, path, SLOW)) for _ in range(most)]
        until(lambda: same.post(path, content=b" ").status_code == 429)
        assert_error(same.post(path, content=b" "), 429, "too_many_requests")
        assert other.post(path, content=b" " * 300_000).status_code == 204
        assert [finish().status_code for finish in finishes] == [204] * most
        until(lambda: same.post(path, content=b" ").status_code == 204)


def temporary_files(proxy: Proxy) -> set[str]:
    """Return the kinds of temporary files that nginx has open, by folder: it takes their names away at once."""
    master = (proxy.folder / "nginx.pid").read_text().strip()
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    links = [os.readlink(link) for pid in workers for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    gone = [link for link in links if link.startswith(str(proxy.folder)) and link.endswith(" (deleted)")]
    return {Path(link).relative_to(proxy.folder).parts[0] for link in gone}


@needs_nginx
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed in /proc here")
def test_a_large_body_takes_room_and_a_large_answer_to_a_slow_client_takes_none() -> None:
    size = 32 * 2**20

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n".encode())
        connection.sendall(b" " * size)

    with upstream(answer) as (port, _), proxy_before(port) as proxy, proxy.client() as client:
        with begun(proxy, "/predict", SLOW):
            until(lambda: temporary_files(proxy) == {"bodies"})
        until(lambda: temporary_files(proxy) == set())
        with client.stream("GET", "/evaluate/jobs/j1/result") as response:
            read = 0
            for piece in response.iter_raw(2**20):
                read += len(piece)
                assert temporary_files(proxy) == set()
        assert read == size


@needs_nginx
def test_too_many_requests_of_one_address_are_429(server: Server) -> None:
    with proxy_before(server.port, REQUESTS_PER_S=1, BURST=1) as proxy, proxy.client(source=SLOW) as client:
        until(lambda: client.get("/health/live").status_code == 429)
        refused = client.get("/health/live")
        while refused.status_code != 429:
            refused = client.get("/health/live")
        assert_error(refused, 429, "too_many_requests")
        with proxy.client() as other:
            assert other.get("/health/live").status_code == 200


@needs_nginx
def test_a_server_that_is_down_is_503_until_it_is_back() -> None:
    port = free_port()
    with proxy_before(port) as proxy, proxy.client() as client:
        response = ask(client, **{"x-request-id": "r-7"})
        assert_error(response, 503, "server_unreachable")
        assert response.headers["x-request-id"] == "r-7"

        def answer(connection: socket.socket, head: bytes) -> None:
            connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

        with upstream(answer) as (back, _), socket.create_server(("127.0.0.1", port)) as listener:
            # The port that was down now leads to the server that is up.
            threading.Thread(target=forward_once, args=(listener, back)).start()
            assert ask(client).status_code == 204


def forward_once(listener: socket.socket, port: int) -> None:
    connection, _ = listener.accept()
    with connection, socket.create_connection(("127.0.0.1", port)) as onward:
        onward.sendall(connection.recv(65536))
        while data := onward.recv(65536):
            connection.sendall(data)


@needs_nginx
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_that_broke_off_is_not_sent_again(method: str) -> None:
    broken: list[bytes] = []

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        # The next request on this connection is read, and the connection closed: as by a server that is killed. nginx
        # would open another connection for it.
        if again := connection.recv(65536):
            broken.append(again)

    with upstream(answer) as (port, heads), proxy_before(port) as proxy, proxy.client() as client:
        assert client.get("/health/live").status_code == 200
        assert_error(client.request(method, "/predict"), 503, "server_unreachable")
        assert (len(heads), len(broken)) == (1, 1)


@needs_nginx
def test_no_answer_in_time_is_504_and_the_server_is_told() -> None:
    told = threading.Event()

    def answer(connection: socket.socket, head: bytes) -> None:
        while connection.recv(65536):
            continue
        told.set()

    with (
        upstream(answer) as (port, heads),
        proxy_before(port, ANSWER_TIMEOUT_S=1) as proxy,
        proxy.client() as client,
    ):
        assert_error(client.post("/predict", json={}), 504, "deadline_exceeded")
        told.wait()
        assert len(heads) == 1


@needs_nginx
def test_events_pass_one_by_one() -> None:
    go_on = threading.Event()

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        connection.sendall(b"data: 1\n\n")
        go_on.wait()
        connection.sendall(b"data: 2\n\n")

    with upstream(answer) as (port, _):
        try:
            with (
                proxy_before(port) as proxy,
                proxy.client() as client,
                client.stream("GET", "/evaluate/jobs/j1/events") as response,
            ):
                lines = response.iter_lines()
                # Buffered, it would come when the answer is whole, which is not before the next line.
                assert next(lines) == "data: 1"
                go_on.set()
                assert [line for line in lines if line] == ["data: 2"]
        finally:
            go_on.set()


@needs_nginx
def test_a_claimed_address_names_nobody(server: Server) -> None:
    port = free_port()
    config = server_config(name_the_caller, settings(port=port, trusted_proxies="127.0.0.1"))
    config.lifespan = "off"
    caller_server = uvicorn.Server(config)
    serving = threading.Thread(target=caller_server.run)
    serving.start()
    try:
        until(lambda: caller_server.started)
        with proxy_before(port) as proxy, proxy.client(source="127.0.0.5") as client:
            for claimed in ({}, {"x-forwarded-for": "203.0.113.9"}, {"x-forwarded-for": "203.0.113.9, 127.0.0.1"}):
                headers = {**claimed, "forwarded": "for=203.0.113.9", "x-real-ip": "203.0.113.9"}
                assert client.get("/", headers=headers).json() == {"caller": "127.0.0.5", "scheme": "https"}
    finally:
        caller_server.should_exit = True
        serving.join()


@needs_nginx
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "//metrics"),
        ("GET", "/%6detrics"),
        ("GET", "/a/../metrics"),
        ("GET", "/a/%2e%2e/metrics"),
        ("GET", "/metrics?a=b"),
        ("POST", "/artifacts/fake/activate"),
        ("DELETE", "/artifacts/fake"),
        ("POST", "/artifacts//fake/activate"),
        ("POST", "/docs/../artifacts/fake/activate"),
    ],
)
def test_figures_and_activation_are_for_the_inside(server: Server, method: str, path: str) -> None:
    with proxy_before(server.port, ADMIN_NETWORK="127.0.0.9") as proxy:
        assert_error(as_it_stands(proxy, method, path), 404, "route_not_found")
        with proxy.client(source="127.0.0.9") as inside:
            assert inside.get("/metrics").status_code == 200
            assert inside.post("/artifacts/fake/activate").status_code == 200
        with proxy.client() as outside:
            # To look is the server's to allow.
            assert outside.get("/artifacts/fake").headers["x-frame-options"]


def test_all_that_needs_the_scope_of_an_administrator_is_below_artifacts() -> None:
    assert {endpoint.split("/")[1] for endpoint, need in ACCESS.items() if need == "admin"} == {"artifacts"}


def as_it_stands(proxy: Proxy, method: str, path: str) -> httpx.Response:
    """Return the answer to a path that httpx would normalise."""
    raw = socket.create_connection(("127.0.0.1", proxy.port))
    with proxy.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        return parsed(received(connection))


def received(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


def parsed(data: bytes) -> httpx.Response:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


@needs_nginx
@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape(server: Server, sent: bytes) -> None:
    with proxy_before(server.port) as proxy:
        raw = socket.create_connection(("127.0.0.1", proxy.port))
        with proxy.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            connection.sendall(sent)
            response = parsed(received(connection))
        assert 400 <= response.status_code < 600
        assert_error(response, response.status_code, "malformed_http")


@needs_nginx
def test_plain_http_is_refused(server: Server) -> None:
    with proxy_before(server.port) as proxy, httpx.Client(timeout=None) as client:
        response = client.get(f"http://127.0.0.1:{proxy.port}/predict")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_http")


@needs_nginx
def test_a_client_that_goes_away_leaves_the_servers_queue(busy: Server) -> None:
    with proxy_before(busy.port) as proxy:
        raw = socket.create_connection(("127.0.0.1", proxy.port))
        body = json.dumps({"inputs": [{"text": f"row {i}"} for i in range(200)]}).encode()
        with proxy.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            until(lambda: busy.in_flight == 1 and busy.metric("laplora_queue_rows") > 0)
        until(lambda: busy.in_flight == 0 and busy.metric("laplora_queue_rows") == 0)
        busy.release()
        with proxy.client() as client:
            assert ask(client).status_code == 200
