"""tools.samples against a server on loopback: good, wrong, broken and absent answers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny import files_of

from lib import data
from lib.files import ROOT, InputError
from tools import samples

NAMES = list(samples.FILES)


class Server(ThreadingHTTPServer):
    """Serves `content` ({path: bytes}), breaks off half-way through `broken`, notes what is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.broken = ""
        self.asked: list[str] = []
        self.base = f"http://127.0.0.1:{self.server_port}/files/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/files/")
        self.server.asked.append(name)
        if name not in self.server.content:
            return self.send_error(404)
        body = self.server.content[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name == self.server.broken else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose four files carry the hashes that the module then expects."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        running.content = {there: there.encode() * 50_000 for there, _ in samples.FILES.values()}
        hashes = {there: hashlib.sha256(body).hexdigest() for there, body in running.content.items()}
        expected = {name: (there, hashes[there]) for name, (there, _) in samples.FILES.items()}
        monkeypatch.setattr(samples, "FILES", expected)
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def test_what_is_missing_is_downloaded_under_our_names(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "samples"
    assert samples.download(folder, server.base) == 4
    assert files_of(folder) == sorted(NAMES)
    for name, (there, _) in samples.FILES.items():
        assert (folder / name).read_bytes() == server.content[there]
    assert len(server.asked) == 4 and samples.download(folder, server.base) == 0
    (folder / NAMES[2]).unlink()
    assert samples.download(folder, server.base) == 1
    assert server.asked[4:] == [samples.FILES[NAMES[2]][0]]


@pytest.mark.parametrize("fault", ["hash", "IncompleteRead", "404"])
def test_a_bad_answer_is_one_sentence_and_leaves_nothing_half_written(
    server: Server, tmp_path: Path, fault: str
) -> None:
    there = samples.FILES[NAMES[1]][0]  # the first file arrives well, the second does not
    if fault == "hash":
        server.content[there] = b"something else"
    elif fault == "IncompleteRead":
        server.broken = there
    else:
        del server.content[there]
    with pytest.raises(InputError, match=f"{there} is not stored in .*{fault}") as caught:
        samples.download(tmp_path, server.base)
    assert "\n" not in str(caught.value) and files_of(tmp_path) == [NAMES[0]]


def test_without_a_server_or_a_folder_nothing_is_stored(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="is not stored in"):
        samples.download(tmp_path / "file" / "samples", server.base)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="look at the connection"):
        samples.download(tmp_path, server.base)
    assert files_of(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_somebody_elses_file_is_not_overwritten(kind: str, server: Server, tmp_path: Path) -> None:
    own = tmp_path / NAMES[3]
    own.symlink_to(tmp_path / "gone") if kind == "dead link" else own.write_bytes(b"my own scan")
    with pytest.raises(InputError, match="not the published sample scan"):
        samples.download(tmp_path, server.base)
    assert [path.name for path in tmp_path.iterdir()] == [own.name] and server.asked == []
    assert own.is_symlink() or own.read_bytes() == b"my own scan"


def test_command_line_ends_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes(b"my own scan")
    command, environment = [sys.executable, "-m", "tools.samples"], os.environ | {"SAMPLES": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and NAMES[0] in done.stderr


def test_the_chosen_folder_goes_before_data_and_that_before_the_neighbour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    monkeypatch.setattr("lib.files.ROOT", root)
    monkeypatch.setenv("DATA_ROOT", str(root / "data"))
    monkeypatch.delenv("SAMPLES", raising=False)
    assert data.sample_folders() == [root / "data" / "samples", tmp_path / "shared" / "samples"]
    with pytest.raises(InputError, match=f"in {root}/data/samples nor in {tmp_path}/.*: run `make samples`"):
        data.sample_cases()
    monkeypatch.setenv("SAMPLES", "mine")  # relative: counts from the repository
    assert data.sample_folders() == [root / "mine"], "the chosen folder or none: no silent change to another"
    with pytest.raises(InputError, match="repository/mine:"):
        data.sample_cases()
