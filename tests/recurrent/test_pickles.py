"""Pickles survive a move of the package's files."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

import cnnlstm_fast

PICKLES = Path(__file__).parents[1] / "pickles"
"""Made by version 0.1.0, when the LSTM's files lay beside the package's ``__init__.py``."""


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
