"""Static catalogues in a bucket, against an S3 server on this machine."""

from __future__ import annotations

import pytest

from geoeco.catalog import open_catalog
from geoeco.errors import CatalogError

boto3 = pytest.importorskip("boto3")
s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="scenes")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def upload(client, folder):
    for path in folder.rglob("*.json"):
        client.upload_file(str(path), "scenes", f"world/{path.relative_to(folder)}")


def test_a_catalogue_in_a_bucket_opens_and_keeps_to_its_bucket(item, catalog_on_disk, bucket):
    folder = catalog_on_disk([item("a"), item("b", "2021-07-01")]).parent
    upload(bucket, folder)
    catalog = open_catalog("s3://scenes/world/catalog.json")
    assert [i.id for i in catalog.search(period="2021-06")] == ["a"]
    assert catalog.search()[0].assets["blue"].href == "s3://scenes/world/sentinel-2-l2a/a/B02.tif"

    for href in ("/etc/passwd", "file:///etc/passwd", "s3://other/B02.tif", "/vsis3/other/B02.tif"):
        catalog_on_disk([item("a", assets={"blue": {"href": href, "type": "image/tiff"}}), item("b")])
        upload(bucket, folder)
        if href == "/etc/passwd":  # a key of the same bucket
            (found,) = catalog.search(query={"id": "a"})
            assert found.assets["blue"].href == "s3://scenes/etc/passwd"
            continue
        with pytest.raises(CatalogError, match=r"(?s)refused.*asset blue of item a"):
            catalog.search()


def test_a_missing_object_is_named(bucket):
    with pytest.raises(CatalogError, match=r"(?s)no such file.*s3://scenes/nowhere\.json"):
        open_catalog("s3://scenes/nowhere.json")
