"""Every kernel compiles for a Hopper GPU, wherever the tests run: the interpreter takes what the compiler refuses, such
as a name that changes its type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    # model, quantisation, batch, cached positions; roles, where its other kernels differ from those above in width only
    ("llama2_7b", "int8", 1, 208, []),
    ("llama2_7b", "none", 1, 4096, []),
    ("mixtral_16l", "int8", 2, 208, []),
    ("qwen3_30b_a3b", "none", 8, 208, []),
    ("llama3_2_1b", "int4", 1, 208, ["embed", "qkv", "wo", "w13"]),
    ("llama3_1_8b", "none", 2, 32768, ["attention", "head", "sample"]),
    ("llama3_1_405b", "int8", 1, 208, ["attention", "w13", "w2"]),
]
SMALL_SHARED = 4096
"""Bytes of shared memory up to which a kernel's programs find room beside those of the one before it."""


@pytest.mark.timeout(600)
def test_kernels_compile_fit_into_registers_and_ask_for_little_shared_memory(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what was compiled before may bear another name
    command = [sys.executable, "-m", "tests.compile_kernels", json.dumps(CASES)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    roles = {kernel["role"] for kernel in compiled}
    assert roles == {"embed", "qkv", "attention", "wo", "route", "w13", "w2", "head", "maxima", "sample"}
    for kernel in compiled:
        assert kernel["kernel"] == kernel["expected"], "else a breakdown would not know what it reads"
        # Each a constant of its own, whose source is in the key of Triton's cache: a changed format is compiled anew.
        assert kernel["functions"] == (4 if kernel["part"] == "matrices" or kernel["role"] == "embed" else 0)
        if kernel["case"][2] == 1:
            assert kernel["stack"] == 0, kernel
        # In a long context there is time enough for attention to be the exception; embed is one program for each token.
        if kernel["role"] != "embed" and (kernel["role"] != "attention" or kernel["case"][3] < 4096):
            assert kernel["shared"] <= SMALL_SHARED, kernel
