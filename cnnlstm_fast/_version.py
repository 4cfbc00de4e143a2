"""The one place where versions stand: pyproject.toml and the native build read ours from here."""

__version__ = "0.1.0"

TESTED_TORCH = ("2.11", "2.13", "2.14")
"""The PyTorch versions with which the tests have run: the slow ones with 2.13 and 2.14, the others with all."""
