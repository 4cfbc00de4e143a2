"""The cell: activations and cell equation, forward and backward. The only place to change an activation.

    c = f * c_prev + i * g,    h = o * tanh(c),    i, f, o = sigmoid(.), g = tanh(.)

``kernels/README.md`` derives the backward pass. All of it is float32, elementwise, on blocks of any shape.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))  # where exp overflows, 1 / inf is the limit


@triton.jit
def tanh(x):
    y = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))  # 1 and -1 where exp is inf and 0
    # the difference loses digits near zero; there the Taylor series up to x^9, whose next term is below 1e-8 of the sum
    q = x * x
    series = x * (1.0 + q * (-1.0 / 3 + q * (2.0 / 15 + q * (-17.0 / 315 + q * (62.0 / 2835)))))
    return tl.where(q < 0.0625, series, y)


@triton.jit
def hidden(o, c):
    """Activated output gate and cell state -> h."""
    return o * tanh(c)


@triton.jit
def cell(i, f, g, o, c_prev):
    """Gates before their activation and the cell state that enters -> activated gates, c, h."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    return i, f, g, o, c, hidden(o, c)


@triton.jit
def cell_backward(i, f, g, o, c, c_prev, dh, dc):
    """Activated gates, c, c_prev, and the gradients of h and c -> those of the gates before activation and of
    c_prev."""
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    d_i = dc * g * i * (1.0 - i)
    d_f = dc * c_prev * f * (1.0 - f)
    d_g = dc * i * (1.0 - g * g)
    d_o = dh * tanh_c * o * (1.0 - o)
    return d_i, d_f, d_g, d_o, dc * f
