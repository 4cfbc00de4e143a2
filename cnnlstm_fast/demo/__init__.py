"""The main job on real input: train a plain reader of number strings, optimize it, prove it, time it.

``run`` is the flow: ``data`` -> ``model`` -> ``train`` -> ``proof`` -> ``measure`` -> ``report``.
"""
