"""Object stores without a network: in memory, and a server that speaks enough of Google's API."""

import contextlib
import http.server
import importlib
import json
import os
import threading
import urllib.parse

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


def in_memory(scheme):
    """A class of fsspec for paths `scheme://bucket/…` whose files lie in memory."""

    class Store(MemoryFileSystem):
        protocol = scheme
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            path = os.fspath(path).partition("://")[2] or os.fspath(path)
            return "/" + path.strip("/") if path.strip("/") else ""

    return Store


@contextlib.contextmanager
def registered(scheme, *others):
    """Makes `etils.epath` find an empty store in memory under these schemes; yields it."""
    store, registry = in_memory(scheme), importlib.import_module("fsspec.registry")._registry
    before = dict(registry)
    registry.update(dict.fromkeys((scheme, *others), store))
    _forget()
    try:
        yield store()
    finally:
        registry.clear()
        registry.update(before)
        _forget()


def _forget():
    """epath keeps the file systems that it has used."""
    known = type(backend.fsspec_backend)._get_filesystem
    if hasattr(known, "cache_clear"):
        known.cache_clear()


def upload(store, folder, url):
    """Copies a folder of this machine into a store."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as f:
                store.pipe_file(f"{url}/{os.path.relpath(path, folder)}", f.read())


@contextlib.contextmanager
def google_server(read):
    """Serves objects as Google Cloud Storage does; yields its address and what was asked for.

    Args:
      read: (bucket, name) → the object's bytes.
    """
    ranges = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            path = url.path.removeprefix("/download").removeprefix("/storage/v1")
            if path.startswith("/b/"):
                bucket, name = path.removeprefix("/b/").split("/o/", 1)
            else:
                bucket, name = path.strip("/").split("/", 1)
            data = read(bucket, urllib.parse.unquote(name))
            headers = {"x-goog-generation": "1"}
            if "alt=media" not in url.query and path.startswith("/b/"):
                self._answer(200, json.dumps(dict(
                    kind="storage#object", name=name, bucket=bucket, generation="1",
                    metageneration="1", size=str(len(data)))).encode(), headers)  # fmt: skip
                return
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            first, last = 0, len(data) - 1
            if wanted.startswith("-"):
                first = max(len(data) - int(wanted[1:]), 0)
            elif wanted:
                first = int(wanted.partition("-")[0])
                last = min(int(wanted.partition("-")[2] or last), last)
            ranges.append((name, first))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206 if wanted else 200, data[first : last + 1], headers)

        def _answer(self, status, body, headers):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", ranges
    finally:
        server.shutdown()
        server.server_close()
