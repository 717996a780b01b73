"""tools.data against a server on loopback that sends ranges, breaks off, and sends what is wrong."""

import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import files_of
from trees import OWN
from urllib3 import Retry

from lib.config import settings_of
from lib.data import cases_of
from lib.files import InputError
from tools import data, remote

FULL = settings_of("adapter", "full")
NUMBERS = {"FLARE22": range(1, 51), "BTCV": (*range(1, 11), *range(21, 41)),
           "AMOS22 CT": range(1, 301), "AMOS22 MRI": range(507, 567)}  # fmt: skip
TOP = {"FLARE22": "FLARE22Train/", "BTCV": "", "AMOS22": "amos22/"}  # folders in the archives
SCANS: dict[str, dict[str, bytes]] = {name: {} for name in TOP}  # below the data set's folder
ARCHIVES = {}
for name, scans in SCANS.items():
    size = 4_000 if name == "AMOS22" else 20_000
    for dataset in data.SETS[name]:
        for stem in (stem.format(number) for number in NUMBERS[dataset] for stem in OWN[dataset]):
            scans[f"{stem.partition('/')[2]}.nii.gz"] = np.random.default_rng(len(scans)).bytes(size)
    with zipfile.ZipFile(whole := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {"imagesTs/amos_0002.nii.gz": b"no labels", **scans}.items():
            archive.writestr(TOP[name] + path, content)
            archive.writestr(f"__MACOSX/{TOP[name]}{path}".replace("amos_", "._amos_"), b"Mac OS X")
    ARCHIVES[name] = whole.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Sends a range, as `status` where that is given; of the answers in `cut` so many bytes alone."""

    server: Any

    def do_GET(self) -> None:
        start, body = int(self.headers["Range"][6:-1]), self.server.archives.get(self.path[1:], b"")
        self.server.asked.append(start)
        status = self.server.status.pop(0) if self.server.status else 206 if body else 404
        self.send_response(status)
        self.send_header("Retry-After", "0")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body[start:][: self.server.cut.pop(0) if self.server.cut else None])

    def handle(self) -> None:
        with suppress(ConnectionError):  # the reader has hung up
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that holds the archives; DATA_ROOT is not there yet."""
    for variable in ("SYNAPSE_AUTH_TOKEN", "DATASET", "ALL_CASES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in (("NO_PROXY", "127.0.0.1"), ("DATA_ROOT", tmp_path / "data"), ("HOME", tmp_path)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(remote, "RETRY", Retry(2, backoff_factor=0, status_forcelist=(429, 503)))
    monkeypatch.setattr(data, "FLARE22_SHA256", hashlib.sha256(ARCHIVES["FLARE22"]).hexdigest())
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.archives, running.asked, running.cut, running.status = dict(ARCHIVES), [], [], []
        running.root = tmp_path / "data"
        for name in ("FLARE22", "AMOS22"):
            monkeypatch.setattr(data, name, f"http://127.0.0.1:{running.server_port}/{name}")
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def refusal(name: str, everything: bool = False) -> str:
    """The one sentence with which a data set does not come."""
    with pytest.raises(InputError) as error:
        data.fetch(name, everything)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0, text
    return text


def found(server: Any, name: str) -> dict[str, bytes]:
    """The files of a data set's folder that are not hidden."""
    home = server.root / name
    return {path: (home / path).read_bytes() for path in files_of(home) if not path.startswith(".")}


def drawn(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """The files of AMOS22 below `root` on which a run would test."""
    with monkeypatch.context() as patch:
        patch.setenv("DATA_ROOT", str(root))
        cases = [case for name in data.SETS["AMOS22"] for case in cases_of(FULL, name)]
    return sorted("/".join(path.parts[-2:]) for case in cases for path in (case.image, case.labels) if path)


def test_of_amos22_the_drawn_cases_come_alone(server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with zipfile.ZipFile(io.BytesIO(ARCHIVES["AMOS22"])) as archive:
        archive.extractall(tmp_path / "whole")
    names = drawn(monkeypatch, tmp_path / "whole")
    tests = {path: SCANS["AMOS22"][path] for path in names}
    server.cut = [None, None, None, None, 1_000, 0, 4_500, 0, 0]  # the directory comes well, the rest is cut
    data.fetch("AMOS22", False)
    assert len(tests) == 40 and found(server, "AMOS22") == tests and not server.cut
    assert drawn(monkeypatch, server.root) == names, "a run draws all that is there"
    assert len(server.asked) < 60, "a request for each file, and not one for each read"
    server.asked.clear()
    assert "drawn as tests are in" in data.fetch("AMOS22", False) and server.asked == []
    (server.root / "AMOS22" / names[0]).unlink()
    data.fetch("AMOS22", False)
    assert found(server, "AMOS22") == tests and len(server.asked) < 8
    data.fetch("AMOS22", True)
    assert found(server, "AMOS22") == SCANS["AMOS22"] and drawn(monkeypatch, server.root) == names
    server.asked.clear()
    assert "all of it" in data.fetch("AMOS22", False) + data.fetch("AMOS22", True) and server.asked == []


def test_a_broken_download_shows_no_case_and_is_gone_on_with(server: Any) -> None:
    server.cut = [400_000, 100_000, *[0] * remote.BREAKS]
    assert f"breaks off after 500000 of {len(ARCHIVES['FLARE22'])} bytes" in refusal("FLARE22")
    assert found(server, "FLARE22") == {}
    data.fetch("FLARE22", False)
    assert found(server, "FLARE22") == SCANS["FLARE22"]
    assert server.asked[-2:] == [0, 7 * 2**16], "it went on where it was, less a piece of 64 kB"
    server.asked.clear()
    assert "all of it" in data.fetch("FLARE22", False) and server.asked == []
    server.cut = [*[None] * 15, 1_000, *[0] * remote.BREAKS]
    assert "breaks off" in refusal("AMOS22") and found(server, "AMOS22") == {}
    stage = server.root / "AMOS22/.download"
    staged = {path: (stage / path).stat().st_mtime_ns for path in files_of(stage)}
    data.fetch("AMOS22", False)
    assert len(found(server, "AMOS22")) == 40 > len(staged) > 0
    for path, time in staged.items():
        assert (server.root / "AMOS22" / path).stat().st_mtime_ns == time, "it is not written again"


@pytest.mark.parametrize("name", ["FLARE22", "AMOS22"])
def test_what_is_not_the_archive_s_is_one_sentence_and_goes(name: str, server: Any) -> None:
    whole = ARCHIVES[name]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        at = {m.header_offset + 2_000 for m in archive.infolist() if m.file_size > 2_000}
    server.archives[name] = bytes(byte ^ (place in at) for place, byte in enumerate(whole))
    assert {"FLARE22": "SHA256 hash", "AMOS22": "Bad CRC-32"}[name] in refusal(name)
    assert files_of(server.root) == []
    server.archives = ARCHIVES
    data.fetch(name, True)
    assert found(server, name) == SCANS[name]


def test_what_stands_in_the_way_is_said(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = [429, 503]  # too many requests: it asks again
    data.fetch("AMOS22", False)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
        for name in ("FLARE22", "AMOS22"):
            assert "has too little space (0.0 GB are needed" in refusal(name, True)
    server.status = [200]
    assert "does not send parts of a file" in refusal("FLARE22")
    server.archives = {}
    assert "404" in refusal("FLARE22")
    server.shutdown()
    server.server_close()
    assert "look at the connection" in refusal("FLARE22")
    assert [path.name for path in server.root.iterdir()] == ["AMOS22"], "nothing of FLARE22"


@pytest.mark.parametrize("dead_link", [False, True])
def test_what_we_did_not_write_stays(dead_link: bool, server: Any) -> None:
    for name, path in (("FLARE22", "labels/FLARE22_Tr_0007.nii.gz"), ("AMOS22", "imagesTr/amos_0003.nii.gz")):
        (own := server.root / name / path).parent.mkdir(parents=True)
        own.symlink_to("nowhere") if dead_link else own.write_bytes(b"my own scan")
        assert f"{own} is not the file of that name in the archive" in refusal(name, True)
        assert own.is_symlink() if dead_link else found(server, name) == {path: b"my own scan"}


def test_other_cases_beside_the_drawn_ones_would_change_the_draw(server: Any) -> None:
    data.fetch("AMOS22", False)
    tests = found(server, "AMOS22")
    other = sorted({*SCANS["AMOS22"]} - {*tests})[0]
    for path in (other, other.replace("images", "labels")):
        (server.root / "AMOS22" / path).write_bytes(SCANS["AMOS22"][path])
    assert "move them away, or say ALL_CASES=1" in refusal("AMOS22")
    assert len(found(server, "AMOS22")) == 42
    data.fetch("AMOS22", True)
    assert found(server, "AMOS22") == SCANS["AMOS22"]


def test_btcv_needs_a_tool_a_login_and_a_licence(server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    assert "pipx install synapseclient" in refusal("BTCV")
    (tmp_path / "archive").write_bytes(ARCHIVES["BTCV"])
    (tool := tmp_path / "synapse").write_text(
        f"""#!/bin/sh
        [ "$*" = "get syn3379050 --downloadLocation {server.root}/BTCV/.download" ] || exit 2
        case $SYNAPSE_AUTH_TOKEN in
        good) cp {tmp_path}/archive "$4/RawData.zip"; rm $0 ;;
        new) echo This entity has access restrictions. Please visit the web page >&2; exit 1 ;;
        *) echo Traceback >&2; echo 401 Client Error >&2; exit 1 ;;
        esac"""
    )
    tool.chmod(stat.S_IRWXU)
    assert "put it into SYNAPSE_AUTH_TOKEN" in refusal("BTCV")
    for token, said in (("new", "BTCV's terms are not accepted"), ("old", "synapse get: 401 Client Error")):
        monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", token)
        assert said in refusal("BTCV") and files_of(server.root) == []
    monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", "good")
    data.fetch("BTCV", False)
    assert found(server, "BTCV") == SCANS["BTCV"] and len(cases_of(FULL, "BTCV")) == 10
    assert "all of it" in data.fetch("BTCV", False) and not tool.exists(), "it was called once"


def test_the_command_goes_on_after_a_refusal(server: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ALL_CASES", "1")
    assert data.main() == 1 and found(server, "AMOS22") == SCANS["AMOS22"]
    out, err = capsys.readouterr()
    assert re.findall(r"^data: (\w+)", out, re.M) == ["FLARE22", "AMOS22"]
    assert re.findall(r"^data: (.*)", err, re.M) == [refusal("BTCV")]
    for names, status in (("AMOS22 FLARE22", 0), ("AMOS21", 1)):
        monkeypatch.setenv("DATASET", names)
        assert data.main() == status
    assert "data: AMOS21 is no data set" in capsys.readouterr().err
