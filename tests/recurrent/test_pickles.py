"""Pickles survive a move of the package's files."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import spec_of
from torch import nn

import cnnlstm_fast

PICKLES = Path(__file__).parents[1] / "pickles"
"""Made by version 0.1.0, when the LSTM's files were in the same folder as the package's ``__init__.py``."""


def modules_named(value: Any) -> set[str]:
    """The modules of everything that the value's pickle imports."""
    opcodes = pickletools.genops(
        pickle.dumps(value, protocol=2)
    )  # which writes "module name" as one argument
    return {argument.split()[0] for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}


def test_a_pickled_layer_of_an_older_version_loads() -> None:
    with (PICKLES / "layer-0.1.0.pkl").open("rb") as file:
        found = pickle.load(file)
    layer = found["layer"]
    assert type(layer) is cnnlstm_fast.LSTM and layer.backend == "reference"
    torch.testing.assert_close(layer(torch.tensor(found["input"]))[0], torch.tensor(found["output"]))


def test_a_saved_model_of_an_older_version_loads() -> None:
    found = torch.load(PICKLES / "model-0.1.0.pt", weights_only=False)
    lstm = found["model"]["lstm"]
    assert type(lstm) is cnnlstm_fast.LSTM and lstm.proj_size == 2
    torch.testing.assert_close(lstm(found["input"])[0], found["output"])


@pytest.mark.parametrize("layer", [cnnlstm_fast.LSTM(3, 4), cnnlstm_fast.optimize(nn.LSTM(3, 4))])
def test_a_pickled_layer_names_the_package_and_no_module_of_it(layer: nn.Module) -> None:
    assert modules_named(layer) - modules_named(nn.LSTM(3, 4)) == {"cnnlstm_fast"}


def test_a_pickled_spec_names_the_package_and_no_module_of_it() -> None:
    spec = spec_of(torch.zeros(2, 1, 3), None, [torch.zeros(16, 3), torch.zeros(16, 4)], bias=False)
    assert modules_named(spec) == {"cnnlstm_fast", "torch"}
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_public_classes_are_those_of_the_package() -> None:
    public = [
        value for name in cnnlstm_fast.__all__ if isinstance(value := getattr(cnnlstm_fast, name), type)
    ]
    assert set(public) == {
        cnnlstm_fast.LSTM,
        cnnlstm_fast.LSTMCell,
        cnnlstm_fast.LSTMSpec,
        type(cnnlstm_fast.BACKENDS["reference"]),
    }
    assert {cls.__module__ for cls in public} == {"cnnlstm_fast"}
