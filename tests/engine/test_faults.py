"""Faults: what may pass is tried again, what fills the disk ends the run, and no secret leaves in a report."""

from __future__ import annotations

import errno

import pytest

from geoeco.engine.faults import fault_of, is_disk_full, is_transient, redacted
from geoeco.errors import OutputError, ReadError, TransientError


def raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as inner:
            raise error from inner
    except Exception as outer:
        return outer


class ClientConnectionError(Exception):
    """Named like an error of aiohttp, which need not be installed."""


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("token expired"), True),
        (TimeoutError("timed out"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.ETIMEDOUT, "timed out"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (ClientConnectionError("gone"), True),
        (ReadError("corrupt"), False),
        (raised_from(ReadError("given up"), TimeoutError()), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (ValueError("shape"), False),
        (OSError(errno.ENOSPC, "full"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, transient):
    assert is_transient(error) is transient
    assert fault_of(error).transient is transient


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        raised_from(OutputError("the block cannot be written"), OSError(errno.ENOSPC, "full")),
        RuntimeError("TIFFAppendToStrip: Write error at scanline 0: No space left on device"),
    ],
)
def test_a_full_disk_is_known_however_it_is_said(error):
    assert is_disk_full(error)
    fault = fault_of(error)
    assert (fault.code, fault.disk_full, fault.transient) == ("disk-full", True, False)


def test_a_fault_names_item_and_asset_where_the_error_does():
    fault = fault_of(ReadError("corrupt", where="item S2A_1_L2A asset B04"), items=["S2A_1", "S2A_1_L2A", "S2B"])
    assert fault.item == "S2A_1_L2A"
    error = ReadError("corrupt")
    error.item, error.asset = "S2B", "B08"
    assert (fault_of(error).item, fault_of(error).asset) == ("S2B", "B08")
    assert fault_of(ValueError("x"), items=["S2B"]).item == ""


@pytest.mark.parametrize(
    "address",
    [
        "https://host/B04.tif?se=2026&sp=r&sig=SECRET%3D&sv=1",
        "https://host/B04.tif?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
        "https://host/B04.tif?access_token=SECRET",
        "https://user:SECRET@host/B04.tif",
        "s3://AKIA:SECRET@bucket/x",
    ],
)
def test_signatures_and_passwords_are_taken_out_of_addresses(address):
    fault = fault_of(ReadError(f"cannot read '{address}'", where=address))
    for text in (fault.what, fault.where, fault.traceback):
        assert "SECRET" not in text
        assert "host/B04.tif" in text or "bucket/x" in text
    assert "sv=1" in redacted("https://h/x?sig=abc&sv=1")
    assert redacted("block at 12:30 of a@b, key=value") == "block at 12:30 of a@b, key=value"
