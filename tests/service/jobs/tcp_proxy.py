"""A proxy before a server that tests take away, let swallow everything, or let lose the answer to a COMMIT."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TcpProxy:
    """Hands bytes on, both ways, a thread for each connection.

    Attributes:
        port: that it listens on.
        swallows: whether it takes connections and bytes, and hands nothing on.
        loses: part of a statement; the next COMMIT after it reaches the server, and then the connection is cut.
    """

    def __init__(self, target: int) -> None:
        self._target, self._away, self._open = target, False, set[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.swallows, self.loses = False, b""
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def go_away(self) -> None:
        """Cut every connection, and those that come, until ``come_back``."""
        self._away = True
        for one in list(self._open):
            _cut(one)

    def come_back(self) -> None:
        self._away = False

    def close(self) -> None:
        _cut(self._listening)
        self._threads[0].join()
        self.go_away()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError), self._listening:
            while True:
                client, _ = self._listening.accept()
                self._threads.append(threading.Thread(target=self._hand_on, args=(client,)))
                self._threads[-1].start()

    def _hand_on(self, client: socket.socket) -> None:
        seen = False
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            while not self._away:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    if self.swallows:
                        continue
                    (server if source is client else client).sendall(data)
                    seen = seen or bool(self.loses and self.loses in data)
                    if seen and source is client and b"COMMIT" in data:
                        self.loses = b""
                        server.recv(65_536)
                        return


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@contextmanager
def tcp_proxy(target: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
