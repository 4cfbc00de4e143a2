"""The commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cnnlstm_fast
from cnnlstm_fast import BACKENDS, cli


def test_info_names_every_backend_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and backend.summary in text for name, backend in BACKENDS.items())
    assert ("lost without the compiled extension" in text) != cnnlstm_fast._native.available


@pytest.mark.parametrize(
    ("version", "tested"),
    [("2.11.0", True), ("2.13.0+cpu", True), ("2.14.1", True), ("2.12.0", False), ("2.15.0a0+git123", False)],
)
def test_info_warns_of_a_pytorch_that_was_never_tested(
    version: str, tested: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.__version__", version)
    assert cli.main(["info"]) == 0
    assert (f"never tested with PyTorch {version}" in capsys.readouterr().out) != tested


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and cnnlstm_fast.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"]], ids=str)
def test_misuse_ends_with_a_usage_text(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and "usage: cnnlstm-fast" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "info" in text and "demo" in text


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cnnlstm_fast", "info"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and "backends:" in done.stdout, done.stderr


def test_misuse_of_the_module_has_an_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cnnlstm_fast", "nonsense"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2 and "usage: cnnlstm-fast" in done.stderr
