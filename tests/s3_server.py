"""An S3 server on loopback that counts what it serves; `from s3_server import s3` in a conftest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3Server:
    """moto in a thread of this process, on a free port.

    Attributes:
        served: bytes of all object bodies sent so far.
        requests: GET requests for objects so far.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        self.served = 0
        self.requests = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._counted, threaded=True, request_handler=MotoRequestHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _counted(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = self._app(environ, start_response)
        is_object = environ["PATH_INFO"].count("/") > 1 and "list-type" not in (
            environ.get("QUERY_STRING") or ""
        )
        if environ["REQUEST_METHOD"] != "GET" or not is_object:
            return body
        pieces = list(body)
        self.requests += 1
        self.served += sum(map(len, pieces))
        return pieces

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What s3fs needs to find this server when the environment does not say."""
        return {"endpoint_url": self.endpoint}

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to find this server."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def upload(self, folder: Path, bucket: str) -> None:
        """Put all files of a folder into a new bucket, under their relative paths."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running server; credentials are in the environment, the address is not."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = S3Server()
    yield server
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
