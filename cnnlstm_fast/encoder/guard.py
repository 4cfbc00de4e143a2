"""TEMPORARY"""

import torch

UNCHANGED, WEIGHTS, CHANGED = 0, 1, 2


class Guard:
    def __init__(self, module, ignored):
        import weakref

        self.ts = [(t, t._version) for t in [*module.parameters(), *module.buffers()]]
        self.requires_grad = any(t.requires_grad for t, _ in self.ts)
        self.m = weakref.ref(module)
        self.tr = [m.training for m in module.modules()]

    def check(self):
        m = self.m()
        if [x.training for x in m.modules()] != self.tr:
            return CHANGED
        ts = [(t, t._version) for t in [*m.parameters(), *m.buffers()]]
        return (
            0
            if len(ts) == len(self.ts) and all(a is c and b == d for (a, b), (c, d) in zip(ts, self.ts))
            else 1
        )


def is_plain(ts):
    return not torch.compiler.is_compiling()


def needs_grad(ts):
    return any(t.requires_grad for t in ts)
