"""Secrets: every form of them, and every place that something is written to."""

import json
import logging
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hydra import compose

from gptbench.base.errors import ConfigError
from gptbench.base.paths import shipped_folder
from gptbench.base.redaction import redacted, redacted_message, redacted_text, remember
from gptbench.commands.gate import gate_command
from gptbench.commands.parsers import PARSERS
from gptbench.commands.report import report_command
from gptbench.commands.rows import rows_command
from gptbench.config import MLflowConfig
from gptbench.config.grammar import quoted
from gptbench.record.settings import place_of
from gptbench.record.sync import usable
from gptbench.record.tracking import AwayError
from tests.results import made_failure, made_result
from tests.sweeps import PLAIN, SHORT
from tests.test_ab import made_ab
from tests.warm import Warm

SECRET = "5ecretPW"

FORMS = {
    "tracking.uri=http://me:5ecretPW@host:5000/x": "tracking.uri=http://***@host:5000/x",
    r"tracking.uri=http\://me\:5ecretPW@host\:5000": r"tracking.uri=http\://***@host\:5000",
    r"tracking.uri=http\://host\:5000/?token\=5ecretPW": r"tracking.uri=http\://host\:5000/?token\=***",
    "https://5ecretPW@host": "https://***@host",
    "https://5ecret/5ecretPW@host": "https://***@host",
    "postgresql://me:sec/5ecretPW@t@host/db": "postgresql://***@host/db",
    "http://me:it's/5ecretPW@host": "http://***@host",
    "http://me:5ecretPW": "http://me:***",
    "http://host:5000/?token=5ecretPW": "http://host:5000/?token=***",
    "http://host/?a=1&password=5ecretPW&b=2": "http://host/?a=1&password=***&b=2",
    "http://host/?api%5Fkey=5ecretPW": "http://host/?api%5Fkey=***",
    "s3://bucket/x?X-Amz-Signature=5ecretPW": "s3://bucket/x?X-Amz-Signature=***",
    "http://host/#access_token=5ecretPW": "http://host/#access_token=***",
    "databricks://5ecretPW": "databricks://***",
    "databricks://scope:5ecretPW": "databricks://***",
    "databricks://token:5ecretPW@host?http_path=/x": "databricks://***@host?http_path=/x",
    "+tracking.password=5ecretPW": "+tracking.password=***",
    "++a.secret=[5ecretPW, 5ecretPW]": "++a.secret=***",
    "a=1 MLFLOW_TRACKING_TOKEN=5ecretPW b=2": "a=1 MLFLOW_TRACKING_TOKEN=*** b=2",
    "{'access_key': '5ecretPW', 'b': 1}": "{'access_key': '***', 'b': 1}",
    "hf_5ecretPW5ecretPW5ecretPW": "***",
    "https://host/x?sas=5ecretPW&code=5ecretPW": "https://host/x?sas=***&code=***",
    "sent Authorization: Bearer 5ecretPW to x": "sent Authorization: *** to x",
    "Bearer 5ecretPW": "Bearer ***",
    "error: password: 5ecretPW": "error: password: ***",
    "token: 5ecretPW": "token: ***",
    "psql --force --password 5ecretPW x": "psql --force --password *** x",
    "?to=http%3A%2F%2Fme%3A5ecretPW%40host&a=1": "?to=http%3A%2F%2F***%40host&a=1",
    "a%2Fhttps%253A%252F%252Fhost%252F%253Ftoken%253D5ecretPW": "a%2Fhttps%3A%2F%2Fhost%2F%3Ftoken%3D***",
    r'{"a": "{\"password\": \"5ecret\\\"PW 5ecretPW\", \"b\": 1}"}': r'{"a": "{\"password\": \"***\", \"b\": 1}"}',
    """{'a': '{"password": "5ecretPW"}'}""": """{'a': '{"password": "***"}'}""",
    "http:/me:5ecretPW@host": "http:/***@host",
    "tracking.uri=me:5ecretPW@host": "tracking.uri=***@host",
}
"""As a value, and without what is secret."""

IN_VALUES = {'http://me:5ec"5ecretPW@host': "http://***@host", "password='5ecretPW x'": "password=***"}
"""Of a text as a whole, that could be JSON, these cannot be told apart from what is around them."""

HARMLESS = (
    *("http://host:5000/#/a me@x", "a@b", "http://[::1]:5000/x", "ray://head:10001", "(http://host:80)", "http://h:5'"),
    *("sqlite:////tmp/x/mlflow.db", "ext://sys.stderr", "tracking.uri=http://${oc.env:GPTBENCH_URI}", "bypass=1"),
    *("sampling.stop_tokens=[1,2]", "workload.new_tokens=4", "joules_per_token=0.5", "model.tokenizer=/a/b", "key=1"),
    *("unexpected token: end", "password: null", "--model 5 --steps-per-token 5", "The bearer is here", "code=1"),
    "http%3A%2F%2Fhost",
)


def test_every_form_of_a_secret_is_hidden_in_values() -> None:
    for form, expected in (FORMS | IN_VALUES).items():
        assert redacted([{"a": (form, 1)}]) == [{"a": (expected, 1)}]
        assert redacted(expected) == expected
    assert redacted({"password": SECRET, "token": None}) == {"password": "***", "token": None}
    assert redacted(["x", "--password", SECRET, SECRET[:2]]) == ["x", "--password", "***", SECRET[:2]]
    assert redacted({f"http://me:{SECRET}@host": 1}) == {"http://***@host": 1}


def test_every_form_of_a_secret_is_hidden_in_texts_which_stay_what_they_are() -> None:
    for form in FORMS:
        for value in (form, [form, "me@here"], {form: f"{form}\n"}):
            if form.startswith("++a.secret"):  # a list, whose end a text does not tell
                continue
            for indent in (None, 1):
                text = redacted_text(json.dumps(value, indent=indent))
                assert SECRET not in text
                json.loads(text)
                assert redacted_text(text) == text
        assert redacted_text(json.dumps(redacted(form))) == json.dumps(redacted(form))
    assert redacted_text('<a href="http://me:5ecretPW@host">me@x</a>') == '<a href="http://***@host">me@x</a>'


def test_what_is_no_secret_stays() -> None:
    for text in HARMLESS:
        assert redacted(text) == redacted_text(text) == redacted_message(text) == text


def test_parts_of_an_address_are_hidden_in_messages() -> None:
    uri = 'http://me:5ecretPW/and space"x@host:5000/?token=an0ther5ecret'
    remember(uri)
    remember("postgresql://mlflow:mlflow@host")  # a name, and no secret
    assert redacted_message(f"cannot connect to {uri}") == "cannot connect to http://***@host:5000/?token=***"
    assert redacted_message("Port could not be cast to integer value as '5ecretPW'").endswith("as '***'")
    assert redacted_message("wrong token (an0ther5ecret) of mlflow") == "wrong token (***) of mlflow"
    assert redacted_message("me, and space") == "me, and space"


def test_errors_and_logs_hold_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    import gptbench.config.guard  # noqa: F401 -- it puts the factory of records in place

    assert SECRET not in str(ConfigError("tracking.uri", f'http://me:{SECRET} x"y@host', "another one"))
    remember(f"http://me:{SECRET}@host")
    try:
        raise ValueError(f"as '{SECRET}'")
    except ValueError:
        logging.getLogger("gptbench.test").exception("#%d : %s", 1, f"tracking.uri=http://me:{SECRET}@host")
    assert SECRET not in caplog.text
    assert "#1 : tracking.uri=http://***@host" in caplog.text


SECRETS = [
    f"tracking.uri='http://me:{SECRET}/it@127.0.0.1:9/?token={SECRET}'",
    "tracking.timeout_s=1",
    "tracking.retries=0",
    f"tracking.run_name='databricks://{SECRET}'",
    f"tracking.experiment='api_key={SECRET}'",
    f"baseline.device='ftp://{SECRET}/a@host'",
    "tracking.figures=false",
]
MADE_OF_ALL = "hydra.run.dir=outputs/${hydra.job.override_dirname}"


def leaks(folder: Path) -> list[Path]:
    """What holds a secret, or is called after it; not what the test itself has put there."""
    found = []
    for path in folder.rglob("*"):
        own = path.relative_to(folder)
        if own.parts[0] != "mine" and (SECRET in str(own) or (path.is_file() and SECRET.encode() in path.read_bytes())):
            found.append(own)
    return found


def test_no_secret_reaches_any_file_or_name_or_what_is_printed(tmp_path: Path, warm: Warm, empty_store: Path) -> None:
    """A run with the store in its outputs, and a sweep of jobs in processes of their own, one of which fails. What they
    print is in files of that folder, too."""
    broken = tmp_path / "mine" / f"token={SECRET}" / "demo"
    shutil.copytree(shipped_folder() / "demo", broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    assert warm.run(tmp_path, *SHORT, *PLAIN, *SECRETS[3:], MADE_OF_ALL)[0] == 0
    model = ["model=auto", f"model.checkpoint='{broken}'", *SHORT[1:], *PLAIN]
    assert warm.run(tmp_path, "-m", "model.weights=auto,random", *model, *SECRETS, "isolation=process")[0] == 1
    assert warm.run(tmp_path, "sync")[0] == 1
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"job.json", "plan.json", "sweep.json", "outcome.json", "failure.json", "result.json"} <= names
    assert {"mlflow.db", "overrides.yaml", "hydra.yaml", "config.yaml", "gptbench.log", "tracked-result.json"} <= names
    assert not leaks(tmp_path)


def test_no_secret_reaches_what_commands_write_or_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"http://me:{SECRET}@127.0.0.1:9"
    result = made_result()
    result = replace(result, command=[*result.command, SECRETS[0], SECRETS[4]])
    run = str(result.save(tmp_path / "outputs" / "run"))
    made_ab().save(tmp_path / "outputs" / "ab")
    replace(made_failure(), reason=SECRETS[0], traceback=SECRETS[1]).save(tmp_path / "outputs" / "failure")
    assert gate_command(["--record", "base.yaml", run, "--uri", address]) == 0
    assert report_command([run, "--title", address, "--uri", address]) == 0
    assert rows_command([run, "--csv", "rows.csv", "--json", "rows.json", "--uri", address]) == 0
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err
    assert not leaks(tmp_path)


BAD_ADDRESSES = (
    *(f"http://u:p w {SECRET}@127.0.0.1:9", f"http:/u:{SECRET}@127.0.0.1:9", f"u:{SECRET}@127.0.0.1", SECRET),
    *(f"ftp://u:{SECRET}@host", f"http:u:{SECRET}@host", f"file:/u:{SECRET}@host", f"http:///{SECRET}", f"x:{SECRET}"),
    *(f"https://host/?token={SECRET} x", f"sqlite:///a b?password={SECRET}", f"sqlite:{SECRET}"),
)
GOOD_ADDRESSES = (
    *("http://127.0.0.1:9", "https://u:p%20w@host/x?a=1", "HTTP://host", "sqlite:////tmp/my folder/mlflow.db"),
    *("postgresql://u:p@h/db", "postgresql+psycopg2://h/db", "mysql+pymysql://u:p@h/db", "mssql+pyodbc://h/db"),
    *("file:/x", "file:///x/y z", "file:mlruns", "databricks", "databricks://profile", "databricks://scope:key"),
)


def test_an_address_that_is_none_is_refused_before_anything_is_written(
    composing: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = r"^tracking\.uri=\*\*\*: expected "
    for uri in BAD_ADDRESSES:
        with pytest.raises(ConfigError, match=expected) as refused:
            tracking(uri)
        assert SECRET not in str(refused.value)
        assert SECRET not in redacted_message(f"{uri}; no host {SECRET}")
        with pytest.raises(SystemExit):
            PARSERS["report"]().parse_args(["x", "--uri", uri])
        assert SECRET not in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"did you mean sqlite:////tmp/x\.db\?"):
        tracking("/tmp/x.db")
    for good in (None, *GOOD_ADDRESSES):
        assert tracking(good).uri == good
    with pytest.raises(ConfigError, match=expected):  # as soon as Hydra has composed it
        compose("config", [f"tracking.uri={quoted(BAD_ADDRESSES[0])}"])
    assert compose("config", [f"tracking.uri={quoted(GOOD_ADDRESSES[1])}"]).tracking.uri == GOOD_ADDRESSES[1]
    with pytest.raises(ConfigError):
        tracking("lake://host")
    plugin = EntryPoint("lake", "lake:Store", "mlflow.tracking_store")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [plugin])
    assert tracking("lake://host").uri == "lake://host"


def tracking(uri: str | None) -> MLflowConfig:
    return MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow", uri=uri)


def test_folders_are_not_called_after_secrets(composing: None) -> None:
    for overrides in (
        [f"hydra.run.dir='outputs/http://me:{SECRET}@host'"],
        [f"hydra.sweep.dir='outputs/?token={SECRET}'"],
        ["hydra.run.dir=outputs/${tracking.uri}", SECRETS[0]],
        [f"outputs='password={SECRET}'"],
        ["engine=fused", f"engine.tile_cache='password={SECRET}'"],
    ):
        with pytest.raises(ConfigError, match="without a password or token in its name") as refused:
            compose("config", overrides)
        assert SECRET not in str(refused.value)


def test_an_address_is_known_again_whoever_asks_it() -> None:
    place = place_of(f"http://me:{SECRET}@host:5000/x")
    assert place == place_of("http://***@host:5000/x") == place_of("http://host:5000/x") == "http://host:5000/x"
    section = MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow", uri="http://***@host:5000/x")
    assert usable(section).uri == place
    with pytest.raises(AwayError, match=r"\?token=\*\*\*: records do not hold what"):
        usable(replace(section, uri="http://host/?token=***"))
