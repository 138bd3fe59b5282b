"""Commands that measure nothing need neither torch nor Triton, and so begin at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from results import made_failure, made_kernels, made_result
from test_ab import made_ab, made_round
from test_damaged import made_sweep, whole_result

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"{name} is not to be imported here", name=name)

sys.meta_path.insert(0, Blocked())
import json
import traceback

from gptbench.__main__ import run

for arguments in json.loads(sys.argv[1]):
    try:
        code = run(arguments)
    except BaseException:
        code = traceback.format_exc()
    sys.stderr.write(json.dumps([arguments[0], code]) + "\\n")
assert not {"torch", "triton"} & set(sys.modules)
"""


def test_commands_that_measure_nothing_need_no_torch(tmp_path: Path, empty_store: Path) -> None:
    outputs, store = tmp_path / "outputs", f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folders = [outputs / "2026-11-22" / f"12-00-0{number}" for number in range(6)]
    records = [
        whole_result(),
        made_result(quant="int8", tracking={"uri": store}),
        made_kernels(),
        made_failure(),
        made_sweep(),
    ]
    records.append(made_ab([made_round(0, 1, lambda side, at_s: 0.01)]))
    for folder, record in zip(folders, records, strict=True):
        folder.mkdir(parents=True)
        record.save(folder)
    first, second = (str(folder) for folder in folders[:2])
    own = ("--outputs", str(outputs))
    baseline = str(tmp_path / "baseline.yaml")
    asked = [
        ["compare", first, second, *own],
        ["report", str(outputs), *own],
        ["rows", first, *own],
        ["explain", first, *own],
        ["export", str(outputs), *own, "--format", "md"],
        ["gate", first, "--record", baseline, *own],
        ["gate", first, "--baseline", baseline, *own],
        ["log", str(folders[0] / "result.json"), str(folders[5] / "ab.json"), "--uri", store, *own],
        ["sync", *own],
        *(["list", what] for what in ("models", "quants", "experiments", "metrics")),
        ["list", "--format", "csv"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert told == [[arguments[0], 0] for arguments in asked], done.stderr
    assert done.returncode == 0, done.stderr
