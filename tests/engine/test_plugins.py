"""What is put on workers leaves no trace in a process that outlives them."""

from __future__ import annotations

import os

import pytest

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")

from geoeco.engine.plugins import GdalSettings  # noqa: E402


def test_settings_of_workers_in_the_users_process_end_with_the_last_of_them(monkeypatch):
    monkeypatch.setenv("GDAL_CACHEMAX", "7")
    monkeypatch.delenv("GDAL_PAM_ENABLED", raising=False)
    before = dict(os.environ)
    with (
        distributed.LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(GdalSettings({"GDAL_CACHEMAX": "64", "GDAL_PAM_ENABLED": "NO"}))
        assert os.environ["GDAL_CACHEMAX"] == "64"
        client.register_plugin(GdalSettings({"GDAL_CACHEMAX": "32"}))
        assert os.environ["GDAL_CACHEMAX"] == "32"
    assert dict(os.environ) == before
