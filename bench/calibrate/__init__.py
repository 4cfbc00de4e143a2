"""The commands that measure the tables by which the package chooses."""
