"""The guard: every edit of a module that must be seen, and every circumstance that makes a call unusual."""

from __future__ import annotations

import copy
import gc
import os
import random
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlstm_fast import _native
from cnnlstm_fast.encoder.guard import CHANGED, UNCHANGED, WEIGHTS, Guard, needs_grad, plain_call

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")


class OwnParameter(nn.Parameter):
    pass


class Base(nn.Module):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)

    def helper(self, x: Tensor) -> Tensor:
        return x * self.scale


class Net(Base):
    sizes = [1, 2]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
        self.norm = nn.BatchNorm2d(64)
        self.tied = nn.Linear(4, 4)
        self.tied_too = nn.Linear(4, 4)
        self.tied_too.weight = self.tied.weight
        self.register_buffer("table", torch.randn(100, 100))
        self.plain_tensor = torch.randn(4)
        self.size, self.name, self.rate, self.flag, self.nothing = 1000, "a name", 0.5, True, None
        self.zero = 0.0
        self.shape = (2, 3)
        self.steps: list[Any] = [1, "two", torch.randn(3)]
        self.options: dict[str, Any] = {"a": 1000}
        self.labels = {"x", "y"}
        self.fixed = (nn.Linear(2, 2),)  # hidden from parameters()
        self.hidden = [nn.Linear(2, 2)]


@pytest.fixture
def net() -> Net:
    return Net().eval()


def _delete(m: Net) -> None:
    del m.rate


def _untie(m: Net) -> None:
    m.tied.weight = nn.Parameter(m.tied.weight.detach().clone())


def _requires_grad(m: Net) -> None:
    m.conv.weight.requires_grad_(False)


def _swap_class(m: Net) -> None:
    m.norm.__class__ = nn.SyncBatchNorm


def _swap_dict(m: Net) -> None:
    m.__dict__ = dict(m.__dict__)


def _instance_forward(m: Net) -> None:
    m.conv.forward = lambda x: x


def _dtype_of_data(m: Net) -> None:
    m.conv.weight.data = m.conv.weight.data.double()


CHANGES: dict[str, Callable[[Net], object]] = {
    "train": lambda m: m.train(),
    "train of one module": lambda m: m.norm.train(),
    "forward hook": lambda m: m.norm.register_forward_hook(lambda *_: None),
    "forward hook with kwargs": lambda m: m.norm.register_forward_hook(lambda *_: None, with_kwargs=True),
    "forward pre-hook": lambda m: m.conv.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda m: m.conv.register_full_backward_hook(lambda *_: None),
    "int": lambda m: setattr(m, "size", 1001),
    "float": lambda m: setattr(m, "rate", 0.25),
    "float that becomes an int": lambda m: setattr(m.norm, "momentum", 1),
    "sign of zero": lambda m: setattr(m, "zero", -0.0),
    "str": lambda m: setattr(m, "name", "another name"),
    "bool": lambda m: setattr(m, "flag", False),
    "None": lambda m: setattr(m, "nothing", 1),
    "tuple": lambda m: setattr(m, "shape", (3, 2)),
    "eps": lambda m: setattr(m.norm, "eps", 0.1),
    "new attribute": lambda m: setattr(m, "new", 1),
    "new attribute of a submodule": lambda m: setattr(m.conv, "new", 1),
    "deleted attribute": _delete,
    "attribute set through __dict__": lambda m: m.__dict__.update(size=7),
    "object.__setattr__": lambda m: object.__setattr__(m, "size", 7),
    "__dict__ replaced": _swap_dict,
    "list item": lambda m: m.steps.__setitem__(0, 2),
    "list longer": lambda m: m.steps.append(1),
    "list shorter": lambda m: m.steps.pop(),
    "dict item": lambda m: m.options.update(a=1),
    "dict longer": lambda m: m.options.update(b=1),
    "dict emptied": lambda m: m.options.clear(),
    "set longer": lambda m: m.labels.add("z"),
    "set item": lambda m: m.labels.symmetric_difference_update({"x", "z"}),
    "submodule replaced": lambda m: setattr(m, "norm", copy.deepcopy(m.norm)),
    "submodule added": lambda m: m.add_module("more", nn.ReLU()),
    "submodule deleted": lambda m: delattr(m, "norm"),
    "hidden module of a list": lambda m: setattr(m.hidden[0], "in_features", 9),
    "hidden module of a tuple": lambda m: setattr(m.fixed[0], "in_features", 9),
    "class of a submodule": _swap_class,
    "forward of an instance": _instance_forward,
    "dtype": lambda m: m.double(),
    "dtype through data": _dtype_of_data,
    "shape": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.randn(64, 3, 1, 1))),
    "resized in place": lambda m: m.table.resize_(10, 10),
    "reshaped through data": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data.view(64, 27)),
    "device": lambda m: m.to("meta"),
    "requires_grad": _requires_grad,
    "Parameter that becomes None": lambda m: setattr(m.conv, "bias", None),
    "Parameter that becomes a subclass": lambda m: setattr(
        m.conv, "bias", OwnParameter(m.conv.bias.detach())
    ),
    "buffer added": lambda m: m.register_buffer("more", torch.zeros(1)),
    "buffer that becomes None": lambda m: setattr(m, "table", None),
    "tied weights untied": _untie,
    "plain tensor that becomes None": lambda m: setattr(m, "plain_tensor", None),
    "plain tensor of another shape": lambda m: setattr(m, "plain_tensor", torch.randn(5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(net: Net, name: str) -> None:
    guard = Guard(net)
    assert guard.check() == UNCHANGED
    CHANGES[name](net)
    assert guard.check() == CHANGED
    assert guard.check() == CHANGED


def _replace(m: Net) -> None:
    m.conv.weight = nn.Parameter(m.conv.weight.detach().clone())


def _replace_tied(m: Net) -> None:
    m.tied.weight = m.tied_too.weight = nn.Parameter(torch.randn(4, 4))


def _in_place(m: Net) -> None:
    with torch.no_grad():
        m.conv.weight[5, 1, 2, 0] += 1  # outside the sample


def _optimizer(m: Net) -> None:
    m.tied.weight.grad = torch.ones(4, 4)
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def _numpy(m: Net) -> None:
    m.table.numpy()[:] *= 2


def _swap_tensors(m: Net) -> None:
    torch.utils.swap_tensors(m.table, torch.randn(100, 100))


def _channels_last(m: Net) -> None:
    m.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _edit_last(m: Net) -> None:
    m.table.data[99, 99] += 1


def _edit_first(m: Net) -> None:
    m.table.data[0, 0] += 1


WEIGHT_EDITS: dict[str, Callable[[Net], object]] = {
    "in place": _in_place,
    "optimizer": _optimizer,
    "load_state_dict": lambda m: m.load_state_dict(Net().state_dict()),
    "load_state_dict(assign)": lambda m: m.norm.load_state_dict(nn.BatchNorm2d(64).state_dict(), assign=True),
    "through data": lambda m: m.conv.weight.data.mul_(0.5),
    "average through data": lambda m: m.conv.weight.data.lerp_(torch.randn(64, 3, 3, 3), 0.01),
    "bias through data": lambda m: m.conv.bias.data.__setitem__(63, 7.0),
    "first number through data": _edit_first,
    "last number through data": _edit_last,
    "NumPy": _numpy,
    "data replaced": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data.clone()),
    "data replaced by other strides": _channels_last,
    "data transposed": lambda m: setattr(m.tied.weight, "data", m.tied.weight.data.t()),
    "Parameter replaced": _replace,
    "tied Parameters replaced together": _replace_tied,
    "buffer in place": lambda m: m.norm.running_mean.add_(1),
    "buffer replaced": lambda m: setattr(m, "table", torch.randn(100, 100)),
    "counter": lambda m: m.norm.num_batches_tracked.data.add_(1),
    "tensors swapped": _swap_tensors,
    "plain tensor in place": lambda m: m.plain_tensor.add_(1),
    "plain tensor replaced": lambda m: setattr(m, "plain_tensor", torch.randn(4)),
    "tensor of a list in place": lambda m: m.steps[2].mul_(2),
    "tensor of a list replaced": lambda m: m.steps.__setitem__(2, torch.randn(3)),
    "hidden module's weight": lambda m: m.hidden[0].weight.data.mul_(2),
    "tuple's module's weight": lambda m: m.fixed[0].weight.data.mul_(2),
}


@pytest.mark.parametrize("name", WEIGHT_EDITS)
def test_an_edit_of_weights_is_seen(net: Net, name: str) -> None:
    guard = Guard(net)
    assert guard.check() == UNCHANGED
    WEIGHT_EDITS[name](net)
    assert guard.check() == WEIGHTS
    assert guard.check() == WEIGHTS
    assert Guard(net).check() == UNCHANGED
    net.train()
    assert guard.check() == CHANGED


def _train_and_eval(m: Net) -> None:
    m.train()
    m.eval()


def _hook_and_remove(m: Net) -> None:
    m.norm.register_forward_hook(lambda *_: None).remove()


def _equal_values(m: Net) -> None:
    m.size, m.name, m.rate = int("1000"), "".join(["a ", "name"]), float("0.5")
    m.options["a"] = int("1000")
    m.steps[1] = "".join(["tw", "o"])


def _copy(m: Net) -> None:
    copy.deepcopy(m)
    m.state_dict()
    list(m.named_modules())


def _run(m: Net) -> None:
    m(torch.randn(2))
    m.norm(torch.randn(1, 64, 2, 2))


def _copy_lists(m: Net) -> None:
    m.steps = list(m.steps)  # as torch.export does


HARMLESS: dict[str, Callable[[Net], object]] = {
    "train and eval": _train_and_eval,
    "hook added and removed": _hook_and_remove,
    "equal values": _equal_values,
    "list replaced by an equal one": _copy_lists,
    "copy, state_dict": _copy,
    "buffer no longer persistent": lambda m: m.register_buffer("table", m.table, persistent=False),
    "hook of the state_dict": lambda m: m.norm.register_state_dict_post_hook(lambda *_: None),
    "hook of loading": lambda m: m.norm.register_load_state_dict_pre_hook(lambda *_: None),
    "call": _run,
    "annotations read": lambda m: Net.__annotations__,  # makes an entry in the class
    "ignored key set": lambda m: m.__dict__.update(mine=1),
    "gradient": lambda m: m.tied(torch.randn(4)).sum().backward(),
    "functional_call, afterwards": lambda m: functional_call(
        m, {"table": torch.zeros(100, 100)}, torch.ones(1)
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_not_seen(net: Net, name: str) -> None:
    guard = Guard(net, frozenset({"mine"}))
    HARMLESS[name](net)
    assert guard.check() == UNCHANGED
    net.size = 7
    assert guard.check() == CHANGED


def test_what_is_undone_is_unchanged_again(net: Net) -> None:
    guard = Guard(net)
    norm = net.norm
    net.norm = nn.Identity()  # type: ignore[assignment]
    assert guard.check() == CHANGED
    net.norm = norm
    assert guard.check() == UNCHANGED


def test_ignored_keys_may_come_change_and_go(net: Net) -> None:
    net.mine = 0
    guard = Guard(net, frozenset({"mine", "theirs"}))
    net.mine = 1
    net.conv.theirs = [1]
    assert guard.check() == UNCHANGED
    del net.mine
    assert guard.check() == UNCHANGED
    net.others = 1
    assert guard.check() == CHANGED


CLASS_EDITS: dict[str, tuple[type, str, Any]] = {
    "forward": (Net, "forward", lambda self, x: x),
    "forward of the base": (Base, "forward", lambda self, x: x),
    "method": (Base, "helper", lambda self, x: x),
    "attribute": (Base, "scale", 2.0),
    "__call__": (nn.Module, "__call__", lambda self, x: x),
    "forward of nn.Conv2d": (nn.Conv2d, "forward", lambda self, x: x),
}


@pytest.mark.parametrize("name", CLASS_EDITS)
def test_an_edit_of_a_class_is_seen(net: Net, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(net)
    monkeypatch.setattr(*CLASS_EDITS[name])
    assert guard.check() == CHANGED
    monkeypatch.undo()
    assert guard.check() == UNCHANGED


def test_items_of_a_class_are_compared(net: Net) -> None:
    guard = Guard(net)
    Net.sizes.append(3)
    assert guard.check() == CHANGED
    Net.sizes.pop()
    assert guard.check() == UNCHANGED


def test_other_bases_are_seen() -> None:
    class Other(Base):
        pass

    class Own(Base):
        pass

    guard = Guard(Own())
    Own.__bases__ = (Other,)
    assert guard.check() == CHANGED


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
        torch_module.register_module_full_backward_pre_hook,
    ],
)
def test_hooks_of_all_modules_are_seen(net: Net, register: Callable[..., Any]) -> None:
    guard = Guard(net)
    handle = register(lambda *_: None)
    try:
        assert guard.check() == CHANGED
    finally:
        handle.remove()
    assert guard.check() == UNCHANGED


def test_a_functional_call_is_seen_from_inside(net: Net) -> None:
    seen = []
    guard = Guard(net)
    net.__dict__["helper"] = lambda x: seen.append(inner.check()) or x
    inner = Guard(net)
    functional_call(net, {"conv.weight": torch.zeros(64, 3, 3, 3)}, torch.ones(1))
    functional_call(net, {"table": torch.zeros(100, 100)}, torch.ones(1))
    assert seen == [
        CHANGED,
        WEIGHTS,
    ]  # a tensor in the place of a Parameter, a tensor in the place of a tensor
    assert inner.check() == UNCHANGED and guard.check() == CHANGED


def test_edits_outside_the_sample_are_not_seen() -> None:
    """As its docstring says; what is dense is sampled, whatever its strides, and what is not is not."""
    module = nn.Module()
    module.register_buffer("rows", torch.randn(1000, 64))
    module.register_buffer("last", torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last))
    module.register_buffer("part", torch.randn(100, 100)[:, ::2])
    guard = Guard(module)
    module.rows.data[10] += 1
    module.part.data.mul_(2)
    assert guard.check() == UNCHANGED
    for row in (0, 333, 666, 999):
        module.rows.data[row].neg_()
        assert guard.check() == WEIGHTS
        module.rows.data[row].neg_()
        assert guard.check() == UNCHANGED
    module.last.data.mul_(2)
    assert guard.check() == WEIGHTS


def test_a_storage_that_was_freed_is_not_read(net: Net) -> None:
    guard = Guard(net)
    net.table.untyped_storage().resize_(0)
    assert guard.check() == WEIGHTS


def test_inference_tensors_have_no_versions() -> None:
    with torch.inference_mode():
        net = Net().eval()
        guard = Guard(net)
        assert guard.check() == UNCHANGED
        net.table.mul_(2)
        assert guard.check() == WEIGHTS


def test_other_kinds_of_tensors() -> None:
    class Own(Tensor):
        pass

    made = {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.0),
        "meta": torch.empty(3, device="meta"),
        "subclass": torch.randn(3).as_subclass(Own),
        "bool": torch.ones(300, dtype=torch.bool),
        "expanded": torch.ones(1).expand(5),
    }
    module = nn.Module()
    for name, tensor in made.items():
        module.register_buffer(name, tensor)
    module.lazy = nn.LazyLinear(3)
    guard = Guard(module)
    assert guard.check() == UNCHANGED
    module.sparse.mul_(2)
    assert guard.check() == CHANGED
    guard = Guard(module)
    module.lazy(torch.randn(2, 2))
    assert guard.check() == CHANGED


@pytest.mark.parametrize("arguments", [(1,), (nn.ReLU(), {"a"}), (None, frozenset())])
def test_wrong_arguments_are_type_errors(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Guard(*arguments)


def test_a_dropped_module_is_freed_with_its_guard(net: Net) -> None:
    module = Net()
    module.loop = module.__dict__["loop_too"] = [module]
    module.__dict__["guard"] = Guard(module, frozenset({"guard"}))
    assert module.__dict__["guard"].check() == UNCHANGED
    weak = [weakref.ref(module), weakref.ref(module.conv), weakref.ref(module.conv.weight)]
    del module
    gc.collect()
    assert [ref() for ref in weak] == [None] * 3


def test_what_was_replaced_lives_as_long_as_the_guard(net: Net) -> None:
    guard = Guard(net)
    old = weakref.ref(net.conv)
    net.conv = nn.Conv2d(3, 64, 3)
    gc.collect()
    assert old() is not None and guard.check() == CHANGED
    del guard
    gc.collect()
    assert old() is None


def test_references_are_counted(net: Net) -> None:
    objects = [
        net,
        net.__dict__,
        net.conv.weight,
        net.steps,
        net._parameters,
        Net,
        nn.Module.__dict__["forward"],
    ]
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(100):
        guard = Guard(net)
        guard.check()
        net.train()
        guard.check()
        net.eval()
    del guard
    gc.collect()
    assert [sys.getrefcount(o) for o in objects] == before


def test_threads(net: Net) -> None:
    guard = Guard(net)
    found: list[int] = []

    def run() -> None:
        found.extend(guard.check() for _ in range(2000))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [UNCHANGED] * 8000


def test_forked_child(net: Net) -> None:
    guard = Guard(net)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ok = guard.check() == UNCHANGED and plain_call((torch.ones(1),))
            net.size = 5
            code = 0 if ok and guard.check() == CHANGED else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guard.check() == UNCHANGED


def test_random_edits_agree_with_a_comparison_in_python(net: Net) -> None:
    """Whatever the order of edits of a __dict__ and of the dicts in it."""
    net.__dict__.clear()
    nn.Module.__init__(net)
    net.__dict__["inner"] = OrderedDict()

    def state() -> tuple[Any, ...]:
        return tuple(net.__dict__.items()), tuple(net.__dict__["inner"].items())

    guard, known = Guard(net), state()
    outcomes = set()
    for _ in range(3000):
        target = random.choice([net.__dict__, net.__dict__["inner"]])
        key, value = random.choice("pqr"), random.randrange(1000, 1003)
        edit = random.randrange(5)
        if edit == 0:
            target.pop(key, None)
        elif edit == 1:
            target[key] = value
        elif edit == 2:
            target.setdefault(key, value)
        elif edit == 3:
            target |= {key: value}
        elif random.random() < 0.2:
            guard, known = Guard(net), state()
        outcome = guard.check()
        assert outcome == (UNCHANGED if state() == known else CHANGED)
        outcomes.add(outcome)
    assert outcomes == {UNCHANGED, CHANGED}


# Calls


class Own(Tensor):
    pass


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


@contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "function mode": FunctionMode,
    "dispatch mode": DispatchMode,
    "fake tensors": torch._subclasses.FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward-mode level": forward_ad.dual_level,
    "default device": _default_device,
}
USUAL: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "profiler": torch.profiler.profile,
}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_no_plain_call(name: str) -> None:
    args = (torch.ones(2), 3)
    assert plain_call(args)
    with MODES[name]():
        assert not plain_call(args)
        assert not plain_call(())
    assert plain_call(args)


@pytest.mark.parametrize("name", USUAL)
def test_usual_circumstances_are_plain(name: str) -> None:
    with USUAL[name]():
        assert plain_call((torch.ones(2),))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: vmap(f)(x),
        lambda f, x: grad(f)(x),
        lambda f, x: jvp(f, (x,), (x,)),
        lambda f, x: torch.func.functionalize(f)(x),
        lambda f, x: torch.jit.trace(f, x, check_trace=False),
        lambda f, x: make_fx(f)(x),
        lambda f, x: make_fx(f, tracing_mode="fake")(x),
    ],
    ids=["vmap", "grad", "jvp", "functionalize", "jit.trace", "make_fx", "make_fx fake"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_transforms_and_traces_are_no_plain_calls(transform: Callable[..., Any]) -> None:
    seen, outside = [], torch.ones(1)

    def function(x: Tensor) -> Tensor:
        seen.extend([plain_call((x,)), plain_call((outside,))])
        return x.sum()

    transform(function, torch.ones(3))
    assert seen and not any(seen)
    assert plain_call((outside,))


def test_export_is_no_plain_call() -> None:
    seen = []

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(plain_call((x,)))
            return x + 1

    torch.export.export(Asks(), (torch.ones(2),), strict=False)
    assert seen and not any(seen)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2).as_subclass(Own),
        torch.eye(2).to_sparse(),
        torch.eye(2).to_sparse_csr(),
        torch.ones(2).to_mkldnn(),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch._neg_view(torch.ones(2)),
        torch._efficientzerotensor(2),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2)]),
        object(),
        nn.LazyLinear(2).weight,
    ],
    ids=[
        "subclass",
        "sparse",
        "csr",
        "mkldnn",
        "conj",
        "neg",
        "zero",
        "quantized",
        "nested",
        "object",
        "lazy",
    ],
)
def test_unusual_values_are_no_plain_call(value: Any) -> None:
    for args in [(value,), (1, [value]), ({"a": (value,)},)]:
        assert not plain_call(args)


def test_a_container_within_itself_is_no_plain_call() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert not plain_call((loop,))


def test_usual_values_are_plain() -> None:
    x = torch.ones(4, 4, requires_grad=True)
    with torch.inference_mode():
        inference = torch.ones(2)
    values = (
        x,
        x.t(),
        x * 2,
        x[::2],
        nn.Parameter(x),
        inference,
        torch.ones(2).bool(),
        torch.ones(()),
        1,
        1.5,
        True,
    )
    assert plain_call((*values, "text", None, [values], {"a": values}, torch.Size([1])))


def test_needs_grad() -> None:
    x = torch.ones(2)
    assert not needs_grad((x, 1))
    leaf = torch.ones(2, requires_grad=True)
    for value in (leaf, leaf * 2, nn.Parameter(x), leaf.as_subclass(Own)):
        for args in [(x, value), (x, [value]), ({"a": (value,)},)]:
            assert needs_grad(args)
            with torch.no_grad():
                assert not needs_grad(args)
            with torch.inference_mode():
                assert not needs_grad(args)


def test_another_thread_has_its_own_circumstances() -> None:
    found = []
    with torch.autocast("cpu"), FunctionMode():
        thread = threading.Thread(target=lambda: found.append(plain_call((torch.ones(1),))))
        thread.start()
        thread.join()
    assert found == [True]


def test_an_edit_of_an_equal_list_is_seen(net: Net) -> None:
    guard = Guard(net)
    _copy_lists(net)
    assert guard.check() == UNCHANGED
    net.steps[0] = 2
    assert guard.check() == CHANGED
