"""A negative set on an object store: a local S3 server (moto). Real scorer, stub engine, no Ray."""

import errno
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.manifest import shard_name
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import Folder
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.models.engine import Request, Sample
from negatives_gen.verbs.extend import ExtendConfig, extend
from tests.support.owners import die
from tests.support.stubs import EngineStub
from tests.support.without_ray import without_ray
from tests.support.written import JOB, SIGNALS, write_part, write_set

pytestmark = pytest.mark.seconds


@pytest.fixture
def server() -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret-test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="negatives")
    yield "s3://negatives"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def objects() -> dict[str, bytes]:
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket="negatives").get("Contents", [])
    return {o["Key"]: client.get_object(Bucket="negatives", Key=o["Key"])["Body"].read() for o in found}


def config(reference: Path, out: str, **options: Any) -> GenerateConfig:
    return make_config(GenerateConfig,
        model=str(reference), dataset="facts", limit=20, out=out, strategies="an=2,bn=1,mn=1,tn=1", groups_per_shard=8,
        embedder="reference", **options,
    )  # fmt: skip


def test_a_set_on_s3_equals_one_on_a_disk_and_is_made_resumed_and_extended_there(
    reference: Path, bucket: str, tmp_path: Path
) -> None:
    components = Components(engine=EngineStub)
    with without_ray():
        generate(config(reference, str(tmp_path / "set")), components)
        generate(config(reference, f"{bucket}/a/set"), components)
    assert sorted(objects()) == sorted(f"a/set/{path.name}" for path in (tmp_path / "set").iterdir())
    stored, local = NegativeSet(f"{bucket}/a/set"), NegativeSet(str(tmp_path / "set"))
    for group, other in zip(stored.groups(), local.groups(), strict=True):
        assert group.id == other.id
        for strategy in ("bn", "mn", "tn"):
            ours, theirs = ([c.ids for c in g.negatives if c.strategy == strategy] for g in (group, other))
            assert ours == theirs
    with without_ray():
        extend(f"{bucket}/a/set", make_config(ExtendConfig, out=f"{bucket}/b", strategies="tn=2"))
    assert NegativeSet(f"{bucket}/b").manifest.job["strategies"]["tn"] == {"count": 2}


def test_an_interrupted_job_on_s3_goes_on(reference: Path, bucket: str) -> None:
    asked: list[int] = []

    class FailingEngineStub(EngineStub):
        """Fails in the second shard."""

        def draw(self, request: Request) -> list[Sample]:
            asked.append(request.n)
            if len(asked) > 8:  # the first shard's
                raise UserError("the engine failed")
            return super().draw(request)

    with without_ray():
        with pytest.raises(UserError, match="the engine failed"):
            generate(config(reference, f"{bucket}/set"), Components(engine=FailingEngineStub))
        before = objects()
        assert {"set/shard-00000.parquet", "set/_job/shard-00000.json", "set/_job/inputs.json"} <= before.keys()
        generate(config(reference, f"{bucket}/set"), Components(engine=EngineStub))
    after = objects()
    assert after["set/shard-00000.parquet"] == before["set/shard-00000.parquet"]
    assert not [key for key in after if "_job" in key or ".tmp" in key]
    assert len(NegativeSet(f"{bucket}/set")) == 20
    assert "secret-test" not in json.dumps([value.decode("latin1") for value in after.values()])


def test_a_store_creates_an_object_once(bucket: str) -> None:
    folder = Folder(f"{bucket}/a")
    assert folder.create("b", b"first")
    assert not folder.create("b", b"second")
    assert folder.create("b", b"first")
    assert folder.read("b") == b"first"


def test_a_store_that_knows_no_conditional_put_is_written_all_the_same(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    pipe_file = S3FileSystem.pipe_file

    def pipe_file_stub(self: Any, path: str, value: bytes, mode: str = "overwrite") -> Any:
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        return pipe_file(self, path, value)

    monkeypatch.setattr(S3FileSystem, "pipe_file", pipe_file_stub)
    folder = Folder(f"{bucket}/a")
    assert (folder.create("b", b"first"), folder.create("b", b"second")) == (True, False)
    assert folder.read("b") == b"first"


def test_two_drivers_on_s3_and_a_straggler(bucket: str) -> None:
    path = f"{bucket}/owned"
    first = NegativeSetWriter(path, JOB, SIGNALS)
    assert first.begin()
    second = NegativeSetWriter(path, JOB, SIGNALS)
    with pytest.raises(UserError, match="is in use by another run"):
        second.begin()
    die(first.claim)
    write_set(path)
    before = objects()
    names = ["manifest.json", "rejects.parquet", *map(shard_name, range(3))]
    assert sorted(key for key in before if key.startswith("owned/")) == [f"owned/{name}" for name in names]
    with pytest.raises(UserError, match="another run has taken over"):
        write_part(first, 0)
    first.release()
    first.end()
    assert objects() == before


def test_the_split_of_a_set_on_s3_is_read_without_the_rest(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs.core import S3File

    from tests.support.numbered import group, write
    from trainer.groups.store import GroupStore

    some = [group(n, "test" if n % 2 else "train") for n in range(1000)]
    draw = random.Random(0)
    for made in some:
        made.response_embedding = [draw.random() for _ in range(100)]
    negatives = write(tmp_path / "set", some, 1000, "all")
    for file in (tmp_path / "set").iterdir():
        Folder(f"{bucket}/set").write(file.name, file.read_bytes())
    fetch, read = S3File._fetch_range, []

    def counted(self: Any, start: int, end: int) -> Any:
        read.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", counted)
    store = GroupStore([NegativeSet(f"{bucket}/set")], "test")
    assert 0 < sum(read) < 2**17 < negatives.manifest.shards[0].bytes / 2
    shard, row = store.locate(499)
    assert shard.prompts[row][0] == 999


def test_a_bucket_that_does_not_exist_is_one_line(reference: Path, bucket: str) -> None:
    with without_ray(), pytest.raises(UserError, match="cannot write 's3://no-such-bucket/set/\\.claim/00001\\.json'"):
        generate(config(reference, "s3://no-such-bucket/set"), Components(engine=EngineStub))


def test_a_store_without_credentials_is_one_line(
    reference: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(key, str(tmp_path / "none"))
    with (
        without_ray(),
        pytest.raises(UserError, match="cannot list 's3://negatives/set': Unable to locate credentials"),
    ):
        generate(config(reference, f"{bucket}/set"), Components(engine=EngineStub))


def test_a_closed_port_is_one_line_whatever_is_asked(bucket: str, server: Any) -> None:
    folder = Folder(f"{bucket}/set")
    stop(server)
    for verb, ask in {
        "open": folder.exists, "list": folder.names, "read": lambda: folder.read("a"),
        "write": lambda: folder.write("a", b""), "remove": lambda: folder.remove("a"),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"cannot {verb} 's3://negatives/set.*': Could not connect .*credentials"):
            ask()
    with pytest.raises(UserError, match="cannot read"):
        folder.read_all(["a", "b"])
    with pytest.raises(UserError, match="cannot write"):
        folder.upload(__file__, "a")


def test_a_store_that_goes_away_in_mid_run_is_one_line(reference: Path, bucket: str, server: Any) -> None:
    class StoppingEngineStub(EngineStub):
        """The store is gone when the first shard is sampled."""

        def draw(self, request: Request) -> list[Sample]:
            stop(server)
            return super().draw(request)

    with without_ray(), pytest.raises(UserError, match=r"cannot .* 's3://negatives/gone.*': Could not conn") as caught:
        generate(config(reference, f"{bucket}/gone"), Components(engine=StoppingEngineStub))
    assert "\n" not in str(caught.value)


def stop(server: Any) -> None:
    server.stop()
    server._server.server_close()  # or the kernel would go on taking connections
