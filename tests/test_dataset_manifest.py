"""What a manifest says of a model and a data set."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

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
