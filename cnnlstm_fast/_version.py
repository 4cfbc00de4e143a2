"""The one place where the version stands: pyproject.toml and the native build read it from here."""

__version__ = "0.1.0"
