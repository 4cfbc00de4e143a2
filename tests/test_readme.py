"""The README's first example runs as it is pasted into a fresh Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_first_example_runs_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    # PyTorch's threads wait for each other in a spin: on a machine with other work two take far longer than one.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block[1]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    explained, verified = done.stdout.split("error against float64")
    assert re.search(
        r"^lstm: LSTM\(64, 128, .*\n  call: .*\n  backend:  \w+: ", explained, flags=re.MULTILINE
    )
    assert verified.rstrip().endswith("verdict: same numbers")
