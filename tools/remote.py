"""How archives come: by HTTP ranges, which go on where they broke off, or by Synapse's own command."""

import io
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from lib.files import InputError

# Zenodo refuses more than so many requests a minute and says when to come again, which Retry obeys.
RETRY = Retry(6, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))
BREAKS = 6  # without a byte in between, that end a call
PIECE = 2**16  # bytes; one that breaks off is lost


class Remote(io.BufferedIOBase):
    """A file at an address that can be read from any place, for instance by zipfile.

    OSError: no answer, one that is no part of the file, or BREAKS of them in a row.
    """

    def __init__(self, url: str) -> None:
        self.url, self.place, self.session = url, 0, requests.Session()
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        self._ask()

    def _ask(self) -> None:
        """Asks for the file from `place` to its end: then many small reads in a row take one request."""
        headers = {"Range": f"bytes={self.place}-", "Accept-Encoding": "identity"}
        self.answer = self.session.get(self.url, headers=headers, stream=True, timeout=60)
        self.answer.raise_for_status()
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", self.answer.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != self.place:
            raise OSError(f"the host of {self.url} does not send parts of a file")
        self.answered, self.size = self.place, int(span[2])  # bytes: where the answer stands, the whole file

    def read(self, count: int | None = -1, /) -> bytes:
        end = self.size if count is None or count < 0 else min(self.place + count, self.size)
        data, breaks = bytearray(), 0
        while self.place < end:
            if not 0 <= self.place - self.answered <= PIECE:  # a short way is sooner read than asked for
                self.answer.close()
                self._ask()
            gap = self.place - self.answered
            try:
                skipped = len(self.answer.raw.read(gap)) if gap else 0
                piece = self.answer.raw.read(min(end - self.place, PIECE)) if skipped == gap else b""
            except (HTTPError, OSError):
                piece = b""
            data += piece
            self.place += len(piece)
            self.answered, breaks = (self.place, 0) if piece else (self.size + 1, breaks + 1)
            if breaks == BREAKS:
                raise OSError(f"{self.url} breaks off after {self.place} of {self.size} bytes")
        return bytes(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.session.close()
        super().close()


def check_space(folder: Path, needed: int) -> None:
    """InputError where the disk of `folder` has no room for `needed` bytes."""
    if (free := shutil.disk_usage(folder).free) < needed:
        sizes = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free"
        raise InputError(f"{folder} has too little space ({sizes}): free some, or name another DATA_ROOT.")


def download(url: str, output: str, _: Any) -> None:
    """For pooch: goes on with what an earlier call has left beside `output`, and puts the whole there."""
    part = Path(output).with_name("archive.part")
    with Remote(url) as remote:
        have = remote.seek(part.stat().st_size if part.exists() else 0)
        check_space(part.parent, 2 * remote.size - have)  # its scans, packed already, take as much again
        bar = tqdm(desc=Path(url).name, total=remote.size, initial=have, unit="B", unit_scale=True)
        with part.open("ab") as file, bar:
            while data := remote.read(PIECE):
                file.write(data)
                bar.update(len(data))
    os.replace(part, output)


def synapse_get(entity: str, folder: Path) -> None:
    """Brings a file of BTCV into `folder`. InputError: tool, login or consent to the terms is missing."""
    if (tool := shutil.which("synapse")) is None:
        raise InputError("BTCV needs Synapse's command: install it by `pipx install synapseclient`.")
    if not os.environ.get("SYNAPSE_AUTH_TOKEN") and not Path("~/.synapseConfig").expanduser().exists():
        how = "make a token (view, download) in your account there and put it into SYNAPSE_AUTH_TOKEN"
        raise InputError(f"BTCV needs your login at synapse.org: {how}.")
    print("data: BTCV: `synapse get` is at work, some minutes without a word", flush=True)
    command = [tool, "get", entity, "--downloadLocation", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if "has access restrictions" in (said := done.stdout + done.stderr):
        how = "open synapse.org/Synapse:syn3193805, accept its terms, then try again"
        raise InputError(f"BTCV's terms are not accepted by your account: {how}.")
    if done.returncode:
        raise OSError(f"synapse get: {said.strip().rpartition(os.linesep)[2]}")
