"""The commands that measure the tables from which the package chooses backends and plans."""
