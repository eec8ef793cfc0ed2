"""Handlers asked instead of a module's calls: in one thread only, and nothing of them is left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from fastcam.intercept import intercepted

SECONDS = 20


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


@pytest.fixture
def x():
    return torch.randn(5, 3)


class Handler:
    """Notes which modules were called and goes on; `answer` stands for the output of the one it is for."""

    def __init__(self, module=None, answer=None):
        self.called, self.module, self.answer = [], module, answer

    def __call__(self, module, forward, args, kwargs):
        self.called.append(module)
        return self.answer if module is self.module else forward(*args, **kwargs)


def attributes(net):
    return [list(vars(module).items()) for module in net.modules()]


def in_a_thread(work):
    """Runs `work` to its end in another thread; what it returned or raised."""
    result = []

    def run():
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert result, "the thread hangs"
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def test_a_handler_answers_or_goes_on(net, x):
    plain, before = net(x), attributes(net)
    handler = Handler(net[1], torch.zeros(5, 4))
    with intercepted(net, handler):
        assert torch.equal(net(x), net[2].bias.expand(5, 2))
    assert handler.called == list(net)
    assert attributes(net) == before and torch.equal(net(x), plain)
    assert handler.called == list(net)


def test_arguments_and_hooks_are_the_calls_own(x):
    class Scaled(nn.Module):
        def forward(self, x, *, scale):
            return x * scale

    module, seen = Scaled(), []
    module.register_forward_hook(lambda m, args, output: output + 1)

    def handler(module, forward, args, kwargs):
        seen.append((args, kwargs))
        return forward(*args, scale=3)

    with intercepted([module], handler):
        assert torch.equal(module(x, scale=2), x * 3 + 1)
    assert seen == [((x,), {"scale": 2})]


def test_a_module_given_twice_is_asked_once(net, x):
    handler = Handler()
    with intercepted([net[0], net[0]], handler):
        net(x)
    assert handler.called == [net[0]]


def test_another_thread_is_not_concerned(net, x):
    plain, handler = net(x), Handler(net[2], "an answer")
    with intercepted(net, handler):
        assert torch.equal(in_a_thread(lambda: net(x)), plain)
        assert handler.called == []
        assert net(x) == "an answer"


def test_the_innermost_handler_is_asked(net, x):
    outer, inner, before = Handler(net[2], "outer"), Handler(net[2], "inner"), attributes(net)
    with intercepted(net, outer):
        with intercepted([net[2]], inner):
            assert net(x) == "inner"
        assert inner.called == [net[2]] and outer.called == [net[0], net[1]]
        assert net(x) == "outer"
    assert attributes(net) == before


def test_one_handler_may_be_nested_in_itself(net, x):
    handler, before = Handler(net[2], "an answer"), attributes(net)
    with intercepted(net, handler):
        with intercepted(net, handler):
            assert net(x) == "an answer"
        assert net(x) == "an answer"
    assert attributes(net) == before and torch.is_tensor(net(x))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_everything_is_restored_after_an_exception(error, net, x):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    net.append(Broken())
    before = attributes(net)
    with pytest.raises(error), intercepted(net, Handler()):
        net(x)
    assert attributes(net) == before
    with pytest.raises(error), intercepted(net, Handler()), intercepted([net[0]], Handler()):
        raise error
    assert attributes(net) == before


def test_a_handler_that_raises(net, x):
    def handler(*_):
        raise KeyError("in the handler")

    before = attributes(net)
    with pytest.raises(KeyError, match="in the handler"), intercepted(net, handler):
        net(x)
    assert attributes(net) == before


def test_modules_that_cannot_be_listed(net):
    def modules():
        yield net[0]
        raise KeyError("in the list")

    before = attributes(net)
    with pytest.raises(KeyError, match="in the list"), intercepted(modules(), Handler()):
        pass
    assert attributes(net) == before


def test_what_compiled_a_module_is_put_back(net, x):
    """The handler's forward is the uncompiled one; another thread goes on calling the compiled one."""

    def compiled(x):
        calls.append("compiled")
        return net[0]._call_impl(x)

    calls: list[str] = []
    vars(net[0])["_compiled_call_impl"] = compiled
    before, plain = attributes(net), net(x)
    assert calls == ["compiled"]
    with intercepted(net, Handler()), intercepted(net, Handler()):
        assert torch.equal(net(x), plain) and calls == ["compiled"]
        assert torch.equal(in_a_thread(lambda: net(x)), plain)
        assert calls == ["compiled"] * 2
    assert attributes(net) == before and vars(net[0])["_compiled_call_impl"] is compiled
    assert torch.equal(net(x), plain) and calls == ["compiled"] * 3


def test_a_module_compiled_in_place(net, x):
    net[0].compile(backend="eager")
    plain, before = net(x), attributes(net)
    with intercepted(net, Handler(net[2], "an answer")):
        assert net(x) == "an answer"
    assert attributes(net) == before and torch.equal(net(x), plain)


@pytest.mark.parametrize("main_leaves_first", [True, False])
def test_two_threads_overlap(main_leaves_first, net, x):
    """Whoever leaves first takes only its own handler away."""
    before, plain = attributes(net), net(x)
    other_is_in, main_is_done, other_is_done = (threading.Event() for _ in range(3))
    answers = {}

    def other():
        with intercepted(net, Handler(net[2], "other")):
            other_is_in.set()
            answers["both"] = net(x)
            if main_leaves_first:
                assert main_is_done.wait(SECONDS)
                answers["alone"] = net(x)
        answers["after"] = net(x)
        other_is_done.set()

    thread = threading.Thread(target=other, daemon=True)
    with intercepted(net, Handler(net[2], "main")):
        thread.start()
        assert other_is_in.wait(SECONDS) and net(x) == "main"
        if not main_leaves_first:
            assert other_is_done.wait(SECONDS) and net(x) == "main"
    if main_leaves_first:
        assert torch.equal(net(x), plain)
    main_is_done.set()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert answers["both"] == "other" and answers.get("alone", "other") == "other"
    assert torch.equal(answers["after"], plain)
    assert attributes(net) == before and torch.equal(net(x), plain)


def test_many_threads_come_and_go(net, x):
    before, together, wrong = attributes(net), threading.Barrier(4, timeout=SECONDS), []

    def work(name):
        together.wait()
        for _ in range(200):
            with intercepted(net, Handler(net[2], name)):
                wrong.extend([name] if net(x) != name else [])
            wrong.extend([name] if not torch.is_tensor(net(x)) else [])

    threads = [threading.Thread(target=work, args=(f"thread {n}",), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads) and not wrong
    assert attributes(net) == before
