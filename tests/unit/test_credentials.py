"""Passwords in URIs, and the addresses that are left of them."""

import copy
import json
import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import small_config

from raymimic.config.checks import check_config
from raymimic.credentials import FULL_URI, ServerUri, masked, passwords_of, secrets_in, without
from raymimic.errors import ConfigError
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.tracking.journal import JournalReader
from raymimic.tracking.mlflow_tracker import delivery_environment
from raymimic.tracking.places import check_named_by_run, resolve_tracking_uri, sqlite_path
from raymimic.training.passwords import remove_passwords

LOGIN = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "hunt@r2"}
POSTGRES = "postgresql+psycopg2://ann:hunt/r2@db:5432/mlflow?sslmode=require&sslpassword=abcd"


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.parametrize(
    ("uri", "address", "environment"),
    [
        ("http://ann:hunt%40r2@host:5000/x", "http://host:5000/x", LOGIN),
        ("https://ann@host", "https://host", {"MLFLOW_TRACKING_USERNAME": "ann"}),
        ("http://ann:****@host", "http://host", {"MLFLOW_TRACKING_USERNAME": "ann"}),
        (
            POSTGRES,
            "postgresql+psycopg2://ann@db:5432/mlflow?sslmode=require",
            {"RAYMIMIC_MLFLOW_URI": POSTGRES},
        ),
        *((u, u, {}) for u in ("http://host:5000", "databricks", "sqlite:////a:b@c/x.db")),
        *((u, u, {}) for u in ("mysql://ann@db/mlflow", "postgresql://db/m?sslmode=require")),
    ],
)
def test_a_password_is_carried_in_memory_alone(
    uri: str, address: str, environment: dict[str, str]
) -> None:
    server = ServerUri.of(uri)
    assert (server, server.environment) == (address, environment)
    assert ServerUri.of(server) is server
    assert copy.deepcopy({"uri": server})["uri"].environment == environment
    assert pickle.loads(pickle.dumps(server)) == address
    for written in (json.dumps([server]), repr(server), pickle.dumps(server).decode("latin1")):
        assert "hunt" not in written
        assert "abcd" not in written


@pytest.mark.parametrize("login", ["ann:hu/nt@r2", "ann:hu#nt", "ann:h?nt", "ann:hu/nt"])
def test_a_login_that_cannot_be_told_from_the_address_is_refused(login: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME") as refused:
        ServerUri.of(f"http://{login}@host")
    assert "nt" not in str(refused.value).partition("'")[2].partition("'")[0]


def test_a_password_that_ends_early_in_a_database_is_refused() -> None:
    with pytest.raises(ConfigError, match="%40") as refused:
        ServerUri.of("postgresql://ann:hunt@r2/x@db/mlflow")
    assert "hunt" not in str(refused.value)
    assert "r2" not in str(refused.value)


@pytest.mark.parametrize("password", ["hunt'r2", 'hunt"r2', "hunt r2", "<hunt>r2"])
def test_blanks_and_quotes_do_not_show_a_password(password: str, tmp_path: Path) -> None:
    """Where a text is searched for a login, they would end it."""
    database = f"postgresql://ann:{password}@db/mlflow"
    assert ServerUri.of(database) == "postgresql://ann@db/mlflow"
    assert ServerUri.of(database).environment == {"RAYMIMIC_MLFLOW_URI": database}
    environment = ServerUri.of(f"http://ann:{password}@db").environment
    assert environment["MLFLOW_TRACKING_PASSWORD"] == password
    assert password not in without(f"no answer from {database}", secrets_in({FULL_URI: database}))
    config = json.dumps({"mlflow": {"tracking_uri": database}})
    (tmp_path / "config.json").write_text(config)
    remove_passwords(str(tmp_path), tmp_path)
    cleaned = json.loads((tmp_path / "config.json").read_text())
    assert set(passwords_of(database)) == {password}
    assert cleaned["mlflow"]["tracking_uri"].startswith("postgresql://ann:***")
    assert "r2" not in cleaned["mlflow"]["tracking_uri"]


def test_the_environment_has_the_password_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunt%40r2@host:5000")
    assert resolve_tracking_uri(None, Path()).environment == LOGIN
    assert ServerUri.of("http://host:5000").environment == LOGIN
    assert ServerUri.of("http://other:5000").environment == {}


def test_texts_are_shown_without_credentials() -> None:
    hidden = {
        "cannot reach http://ann:hu@nt/er@host/x, alas": "cannot reach http://***@host/x, alas",
        "s3://key:secret@bucket/x": "s3://***@bucket/x",
        "https://ghp_token@raw.host/x": "https://***@raw.host/x",
        "https://h/d.hdf5?X-Amz-Signature=ab%2Fc&v=1": "https://h/d.hdf5?X-Amz-Signature=***&v=1",
        "https://h/d?sv=1&sig=abc": "https://h/d?sv=1&sig=***",
    }
    for text, shown in hidden.items():
        assert masked(text) == shown
    for plain in ("abfs://box@account.dfs/x", "sftp://ann@host/x", "a@b.de: 5 http://h:5000/x"):
        assert masked(plain) == plain
    secrets = secrets_in({**LOGIN, "MLFLOW_TRACKING_TOKEN": "bearer-1"})
    said = "Basic YW5uOmh1bnRAcjI= / hunt@r2 / bearer-1"
    assert without(said, secrets) == "Basic *** / *** / ***"
    assert passwords_of(POSTGRES) == {"hunt/r2", "abcd"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ray.storage_path", "s3://AKIA:hunter2@bucket/runs"),
        ("ray.address", "ray://ann:hunter2@head:10001"),
        ("experiment.ckpt_path", "https://hunter2@host/model.pth"),
        ("train.data", "simplecache::https://ann:hunter2@host/demos.hdf5"),
        ("train.data", [{"path": "ftp://ann:hunter2@host/demos.hdf5"}]),
    ],
)
def test_logins_in_other_uris_are_refused(key: str, value: object) -> None:
    config = small_config("bc", **{"train.data": "x.hdf5"})
    config.set_path(key, value)
    with pytest.raises(ConfigError, match=r"with a login that every checkpoint") as refused:
        check_config(config)
    assert "hunter2" not in str(refused.value)


def test_a_sweep_does_not_hold_the_password(tmp_path: Path) -> None:
    sweep = {
        "name": "s",
        "config": json.loads(small_config("bc", **{"train.data": "x.hdf5"}).dump()),
        "set": {"mlflow.tracking_uri": "http://ann:hunt%40r2@host"},
        "space": {"train.batch_size": {"grid": [8, 16]}},
    }
    spec = sweep_from_dict(sweep)
    assert resolve_tracking_uri(spec.base_config["mlflow"]["tracking_uri"], tmp_path).environment
    config = spec.config_for(spec.trials()[0])
    for written in (json.dumps(spec.to_dict()), config.dump(), str(spec)):
        assert "hunt" not in written
    assert b"hunt" not in pickle.dumps(spec)


def test_a_server_named_by_a_folder_does_not_get_the_login_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ServerUri.of("http://theirs")
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"::.:x:{Path.cwd()}")
    assert LOGIN.items() <= delivery_environment(server, named_by_run=True).items()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours")
    environment = delivery_environment(server, named_by_run=True)
    assert not LOGIN.keys() & environment.keys()
    assert LOGIN.items() <= delivery_environment(server, named_by_run=False).items()
    paths = environment["PYTHONPATH"].split(":")
    assert paths[0] == str(Path.cwd())
    assert all(Path(path).is_absolute() for path in paths)


def test_a_folder_cannot_name_any_file_for_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "exp" / "run"
    run.mkdir(parents=True)
    other = tmp_path / "a?b%41" / "x.db"
    server = resolve_tracking_uri(f"sqlite:///{tmp_path}/a%3Fb%2541/x.db", run)
    assert sqlite_path(server) == other
    for uri in (server, "file:///etc", str(tmp_path)):
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI="):
            check_named_by_run(uri, run)
    other.parent.mkdir()
    other.write_bytes(b"of somebody else")
    with pytest.raises(ConfigError, match="has no database yet"):
        check_named_by_run(server, run)
    check_named_by_run(resolve_tracking_uri(None, run), run)
    check_named_by_run("http://host", run)
    check_named_by_run("databricks", run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    check_named_by_run(server, run)


def test_passwords_of_old_runs_are_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files as 0.1.0 wrote them, for a server, with a password that JSON writes otherwise."""
    uri = "http://ann:hünt%40r2@host:5000"
    spool = tmp_path / "logs" / "mlflow"
    (spool / "artifacts" / "x").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    config = json.dumps({"algo_name": "bc", "mlflow": {"tracking_uri": uri}}, indent=4)
    (tmp_path / "config.json").write_text(config)
    (spool / "artifacts" / "x" / "config.json").write_text(config)
    start = {"type": "start", "time": 1, "key": "k", "tracking_uri": uri, "experiment": "e"}
    start |= {"run_name": None, "params": {"mlflow.tracking_uri": uri}, "tags": {}}
    start |= {"host": "h", "pid": 1, "parent": None}
    finish = {"type": "finish", "time": 2, "status": "FAILED"}
    journal = spool / "journal.jsonl"
    journal.write_text(f"{json.dumps(start)}\n{json.dumps(finish)}\n")
    ends = [record.end for record in JournalReader(spool).read()]
    weights = torch.arange(6.0)
    model = tmp_path / "models" / "model_epoch_1.pth"
    torch.save({"config": config, "model": {"w": weights}, "algo_name": "bc"}, model)
    (tmp_path / "logs" / "log.txt").write_text(f"MLflow at {uri} answers; nothing of hünt.\n")

    remove_passwords(str(tmp_path), tmp_path)

    left = {p for p in tmp_path.rglob("*") if p.is_file() and b"40r2" in p.read_bytes()}
    assert left == set()
    assert [record.end for record in JournalReader(spool).read()] == ends
    assert JournalReader(spool).read()[0].data["tracking_uri"].endswith("*@host:5000")
    assert zipfile.ZipFile(model).testzip() is None
    loaded = torch.load(model, weights_only=True)
    assert torch.equal(loaded["model"]["w"], weights)
    uri_left = json.loads(loaded["config"])["mlflow"]["tracking_uri"]
    assert (str(ServerUri.of(uri_left)), uri_left.count("*")) == (
        "http://host:5000",
        len(json.dumps("hünt%40r2")) - 2,
    )
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "in 5 files" in caplog.text
    caplog.clear()
    remove_passwords(str(tmp_path), tmp_path)  # nothing is left to do
    assert caplog.text == ""
