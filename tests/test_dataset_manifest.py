"""What a manifest says of a model and a data set."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastcam.dataset import describing
from fastcam.dataset.describing import described_dataset, fingerprint, model_fingerprint, plain
from fastcam.model_targets import ClassifierOutputTarget


def test_a_fingerprint_is_of_shape_type_and_bytes_of_every_part():
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    told = b"torch.float32(2, 3)" + x.numpy().tobytes() + b"\0" + "ä".encode() + b"\0" + b"raw" + b"\0"
    assert fingerprint([x, "ä", b"raw"]) == hashlib.sha256(told).hexdigest()
    others = [x.double(), x.reshape(3, 2), x.T, x + 1, x.to(torch.bfloat16), torch.tensor(0.0), torch.empty(0, 3)]
    assert len({fingerprint([t]) for t in (x, *others)}) == 8
    assert fingerprint([x.T.contiguous().T]) == fingerprint([x])  # however it lies in memory


def test_a_fingerprint_takes_no_memory_for_a_copy():
    x = torch.zeros(2**22)
    tracemalloc.start()
    fingerprint([x])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 10


K, SETTINGS, WEIGHTS, TARGET = 3, SimpleNamespace(k=3, workers=1), torch.ones(200), ClassifierOutputTarget(3)


def holding(k):
    return lambda logits: logits[k]


def test_targets_that_compute_something_else_are_told_apart():
    functions = [
        *(ClassifierOutputTarget(k) for k in (0, 1)),
        *(functools.partial(torch.select, dim=0, index=k) for k in (0, 1)),
        *(holding(k) for k in (0, 1)),
        lambda logits: logits.sum(),
        lambda logits: logits.sum() + 1,
        lambda logits, k=2: logits[k],
        lambda logits, k=3: logits[k],
    ]
    told = [json.dumps(plain(f), sort_keys=True) for f in functions]
    assert len({*told}) == len(functions) and not any(" at 0x" in text for text in told)
    assert plain(holding(1)) == plain(holding(1)) and plain(ClassifierOutputTarget(1)) == plain(
        ClassifierOutputTarget(1)
    )
    endless = [0]
    endless.append(endless)
    json.dumps(plain(endless))


def test_data_sets_that_hold_something_else_are_told_apart():
    x = torch.arange(12.0).reshape(6, 2)
    whole, other = TensorDataset(x), TensorDataset(x + 1)
    data = [
        *(whole, other, Subset(whole, [0, 1]), Subset(whole, [1, 2]), Subset(other, [0, 1])),
        *(ConcatDataset([whole, other]), ConcatDataset([other, whole]), list(x), list(x + 1)),
    ]
    told = [json.dumps(described_dataset(d)) for d in data]
    assert len({*told}) == len(data)
    assert told == [json.dumps(described_dataset(d)) for d in data]


class Held(Dataset):
    """Of a user's own."""

    def __init__(self, **held):
        vars(self).update(held)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4)


class Split:
    """A transform that prints as nothing but its name."""

    def __init__(self, size):
        self.size = size


def test_what_a_users_data_set_holds_counts(monkeypatch):
    monkeypatch.setattr(describing, "_WHOLE", 2**12)
    large = torch.arange(2**14, dtype=torch.int16)
    pictures = [Image.new("L", (2, 2), n) for n in (0, 1)]
    kinds = [
        *(
            [{"data": x}, {"data": x + 1}]
            for x in (large, large.numpy(), large[:4].bfloat16(), np.array([["a", 1], [2, 3]]) == 2)
        ),
        [{"data": large}, {"data": torch.cat([large[:-1], large[:1]])[1:].clone()}],
        *([{"split": text}, {"split": text + "x"}] for text in ("val", "v" * 300)),
        [{"paths": ["a.png", "b.png"]}, {"paths": ["a.png", "c.png"]}, {"paths": [("a.png", 0)]}, {"paths": []}],
        [{"_files": [Path("a.png")]}, {"_files": [Path("b.png")]}],
        [{"transform": Split(2)}, {"transform": Split(3)}, {"transform": lambda x: x}, {"transform": lambda x: x + 1}],
        [{"images": [x]} for x in pictures],
        [{"of": TensorDataset(x)} for x in (large, large + 1)],
        [{"table": SimpleNamespace(columns=["path"], to_numpy=lambda n=n: np.array([f"{n}.png"]))} for n in "ab"],
        [{"raw": b"a"}, {"raw": b"b"}],
        [{"root": "/data/val", "n": 2}, {"root": "/data/test", "n": 2}],
    ]
    for kind in kinds:
        told = [json.dumps(described_dataset(Held(**held)), sort_keys=True) for held in kind]
        assert len({*told}) == len(kind), kind
        assert told == [json.dumps(described_dataset(Held(**held)), sort_keys=True) for held in kind]
        assert all(len(text) < 800 and " at 0x" not in text for text in told)


def test_where_a_data_set_lies_and_what_it_remembers_do_not_count():
    def at(root, **more):
        paths = [f"{root}/a.png", Path(root) / "b/c.png"]
        return Held(root=root, paths=paths, _split_folder=Path(root) / "val", labels=np.array([0, 1]), **more)

    told = [described_dataset(d) for d in (at("/data/x"), at("/mnt/y/z/"), at("/data/x", _cache={1: 2}, _seen=3))]
    assert told[0] == told[1] == told[2] and told[0]["settings"]["paths"] == ["a.png", "b/c.png"]

    class Odd:
        @property
        def __dict__(self):
            raise RuntimeError("it is not open")

    endless = at("/data/x", odd=Odd())
    endless.self = endless
    json.dumps(described_dataset(endless))


def test_so_many_values_are_looked_at_and_no_more(monkeypatch):
    monkeypatch.setattr(describing, "_MOST", 5)
    found = described_dataset(Held(items=[[n] for n in range(4)], n=7))["settings"]
    assert found == {"items": [[0], [1], "builtins.list", "builtins.list"], "n": "builtins.int"}


def test_a_tensor_is_a_data_set_that_holds_it():
    x = torch.arange(6.0).reshape(2, 3)
    told = [described_dataset(d) for d in (x, x + 1, x.clone())]
    assert (
        told[0] == told[2] != told[1] and told[0]["fingerprint"] == described_dataset(TensorDataset(x))["fingerprint"]
    )


class Chosen:
    def __call__(self, logits):
        return logits[K]


def of_a_function(logits):
    return logits[K]


def test_global_values_of_a_target_count(monkeypatch):
    functions = [lambda y: y[K], lambda y: of_a_function(y), lambda y: (lambda: y[K])(), Chosen(), of_a_function]
    functions += [functools.partial(of_a_function), lambda y: y[SETTINGS.k], lambda y: (y * WEIGHTS).sum()]
    functions += [lambda y: TARGET(y)]
    for name, values in {
        "K": (3, 5),
        "SETTINGS": (SimpleNamespace(k=3, workers=1), SimpleNamespace(k=5, workers=1)),
        "WEIGHTS": (torch.ones(200), torch.zeros(200)),
        "TARGET": (ClassifierOutputTarget(3), ClassifierOutputTarget(5)),
    }.items():
        found = []
        for value in values:
            monkeypatch.setattr(sys.modules[__name__], name, value)
            found.append([json.dumps(plain(f), sort_keys=True) for f in functions])
        changed = [was != now for was, now in zip(*found, strict=True)]
        uses = {"K": [*range(6)], "SETTINGS": [6], "WEIGHTS": [7], "TARGET": [8]}[name]
        assert changed == [n in uses for n in range(len(functions))], name
    known = plain(functions[6])
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", SimpleNamespace(k=5, workers=8))
    assert plain(functions[6]) == known, "what it does not name may change"
    assert plain(torch.nn.functional.softmax).keys() == {"function", "code", "holds", "defaults"}


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.of = factor, print

    def extra_repr(self):
        return f"of={object()}"  # with an address

    def forward(self, x):
        return x * self.factor


def test_a_models_own_settings_count_and_addresses_do_not():
    assert (
        model_fingerprint(Scaled(1.0)) == model_fingerprint(Scaled(1.0).train(False)) != model_fingerprint(Scaled(3.0))
    )


def test_a_function_is_the_same_in_every_process():
    """The order of a set of texts is another in each."""
    code = "from fastcam.dataset.describing import plain; print(plain(lambda y: y in {'ant', 'bee', 'cow'})['code'])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
