"""Finding, downloading and reading weights."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from sam_lora.errors import UserError
from sam_lora.model import weights
from sam_lora.model.weights import download, find_weights, misfit, read_state_dict
from sam_lora.sam_types import SAM_TYPES

CONTENT = bytes(range(256)) * 5000  # 1.28 MB, more than one read
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /weights.pth. `ranges`: honours Range; `stop_after`: bytes after which the line drops."""

    def __init__(self, ranges: bool = True, stop_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.stop_after, self.requests = ranges, stop_after, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.server.stop_after])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def closed_url():
    """An address where nobody listens: its port is taken, but by a socket that accepts no connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


def partial_of(path: Path) -> Path:
    return path.with_name(f".partial-{path.name}")


def fetch(url: str, path: Path, sha256: str = SHA256) -> None:
    download(url, path, len(CONTENT), sha256)


def test_download_leaves_the_whole_file_only(tmp_path):
    path = tmp_path / "weights" / "weights.pth"
    with Server() as server:
        fetch(server.url, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [pytest.param(True, id="from where it stopped"),
                                    pytest.param(False, id="anew from a server that cannot")])
def test_download_resumes(tmp_path, ranges):
    path = tmp_path / "weights.pth"
    with Server(ranges, stop_after=300_000) as server:
        with pytest.raises(UserError, match=r"stopped at 300,000 of 1,280,000 bytes; run again to resume"):
            fetch(server.url, path)
        assert not path.exists() and partial_of(path).stat().st_size == 300_000
        server.stop_after = None
        fetch(server.url, path)
        assert server.requests == [None, "bytes=300000-"]
    assert path.read_bytes() == CONTENT
    assert not partial_of(path).exists()


def test_download_that_is_something_else_is_removed(tmp_path):
    path = tmp_path / "weights.pth"
    with Server() as server, pytest.raises(UserError, match="the download has SHA-256 .*, expected 000000000000…"):
        fetch(server.url, path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_partial_file_does_not_become_weights(tmp_path):
    path = tmp_path / "weights.pth"
    partial_of(path).write_bytes(b"x" * 100)
    with Server() as server:
        with pytest.raises(UserError, match="it was deleted"):
            fetch(server.url, path)
        fetch(server.url, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("offline", [pytest.param(True, id="offline"), pytest.param(False, id="not found")])
def test_without_a_download_the_error_says_what_to_do(tmp_path, closed_url, offline):
    path = tmp_path / "weights.pth"
    with Server() as server, pytest.raises(UserError) as error:
        address = f"{closed_url}weights.pth" if offline else server.url.replace("weights", "gone")
        fetch(address, path)
    message = str(error.value)
    assert "the download failed" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []
    assert f"download {address} by hand to {path}, or name your copy with --checkpoint" in message


def test_find_weights_takes_what_is_there_before_it_downloads(tmp_path, closed_url):
    sam_type = SAM_TYPES["vit_b"]
    (tmp_path / sam_type.weights_file).write_bytes(b"here")
    assert find_weights("vit_b", tmp_path, closed_url) == tmp_path / sam_type.weights_file
    with pytest.raises(UserError, match=f"{closed_url}sam_vit_l_0b3195.pth"):
        find_weights("vit_l", tmp_path, closed_url)


def test_vit_mini_comes_with_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED_WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"sam_vit_mini.pth: missing, and published nowhere else, since it ships"):
        find_weights("vit_mini", tmp_path)
    (tmp_path / "sam_vit_mini.pth").touch()
    assert find_weights("vit_mini") == tmp_path / "sam_vit_mini.pth"


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))
    torch.save({"weight": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("state", "problem"), [
    pytest.param({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, "", id="fits"),
    pytest.param({"a": torch.zeros(2, 3)}, "tensors missing: 1, unknown: 0, of another shape: 0; e.g. b", id="missing"),
    pytest.param({"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)},
                 "tensors missing: 0, unknown: 1, of another shape: 0; e.g. c", id="unknown"),
    pytest.param({"a": torch.zeros(3, 2), "b": torch.zeros(4)},
                 "tensors missing: 0, unknown: 0, of another shape: 1; e.g. a", id="another shape"),
])
def test_what_does_not_fit_a_model_is_counted_and_named(state, problem):
    assert misfit({"a": torch.ones(2, 3), "b": torch.ones(4)}, state) == problem
