"""tools.samples against a server on loopback: good, wrong, broken and absent answers."""

import runpy
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tiny import files_of

from lib import data
from lib.files import InputError, file_hash
from tools import samples

NAMES = list(samples.FILES)


class Handler(SimpleHTTPRequestHandler):
    """Notes what is asked for; of a `broken` file less arrives than is announced."""

    server: Any

    def log_request(self, *_: object) -> None:
        self.server.asked.append(self.path[1:])

    def log_message(self, *_: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        longer = keyword == "Content-Length" and self.path[1:] == self.server.broken
        super().send_header(keyword, str(2 * int(value)) if longer else value)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server whose four files carry the hashes that the module then expects."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home, expected = tmp_path_factory.mktemp("server"), {}
    for name, (there, _) in samples.FILES.items():
        (home / there).write_bytes(there.encode() * 50_000)
        expected[name] = there, file_hash(home / there)
    monkeypatch.setattr(samples, "FILES", expected)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=home)) as running:
        running.home, running.asked, running.broken = home, [], ""
        running.base = f"http://127.0.0.1:{running.server_port}/"
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def test_what_is_missing_is_downloaded_under_our_names(server: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "samples"
    assert samples.download(folder, server.base) == 4
    assert files_of(folder) == sorted(NAMES)
    for name, (there, _) in samples.FILES.items():
        assert (folder / name).read_bytes() == (server.home / there).read_bytes()
    assert len(server.asked) == 4 and samples.download(folder, server.base) == 0
    (folder / NAMES[2]).unlink()
    assert samples.download(folder, server.base) == 1
    assert server.asked[4:] == [samples.FILES[NAMES[2]][0]]


@pytest.mark.parametrize("fault", ["hash", "IncompleteRead", "404"])
def test_a_bad_answer_is_one_sentence_and_leaves_nothing_half_written(
    server: Any, tmp_path: Path, fault: str
) -> None:
    there = samples.FILES[NAMES[1]][0]  # the first file arrives well, the second does not
    if fault == "hash":
        (server.home / there).write_bytes(b"something else")
    elif fault == "IncompleteRead":
        server.broken = there
    else:
        (server.home / there).unlink()
    with pytest.raises(InputError, match=f"{there} is not stored in .*{fault}") as caught:
        samples.download(tmp_path, server.base)
    assert "\n" not in str(caught.value) and files_of(tmp_path) == [NAMES[0]]


def test_without_a_server_or_a_folder_nothing_is_stored(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="is not stored in"):
        samples.download(tmp_path / "file" / "samples", server.base)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="look at the connection"):
        samples.download(tmp_path, server.base)
    assert files_of(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_somebody_elses_file_is_not_overwritten(kind: str, server: Any, tmp_path: Path) -> None:
    own = tmp_path / NAMES[3]
    own.symlink_to(tmp_path / "gone") if kind == "dead link" else own.write_bytes(b"my own scan")
    with pytest.raises(InputError, match="not the published sample scan"):
        samples.download(tmp_path, server.base)
    assert [path.name for path in tmp_path.iterdir()] == [own.name] and server.asked == []
    assert own.is_symlink() or own.read_bytes() == b"my own scan"


def test_command_line_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAMES[0]).write_bytes(b"my own scan")
    monkeypatch.setenv("SAMPLES", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^samples: {tmp_path / NAMES[0]} is not the .*[.]$"):
        runpy.run_path(samples.__file__, run_name="__main__")


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
