"""The demo: train a plain PyTorch reader of number strings, optimize it, verify it and time it.

``run`` is the flow: ``data`` -> ``model`` -> ``train`` -> ``proof`` -> ``measure`` -> ``report``.
"""
