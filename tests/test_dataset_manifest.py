"""What a manifest says of a model and a data set."""

import hashlib
import tracemalloc

import torch

from fastcam.dataset.manifest import fingerprint


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
