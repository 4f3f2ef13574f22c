"""What units raise, by status: what memory would mend is tried again with more, a mistake is not."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from bench.records import BenchError
from bench.worker.outcomes import guarded

# As torch 2 words them on a GPU, and numpy, torch and the system do here.
CUDA = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: can't allocate memory",
)


def raising(error):
    def action():
        raise error

    return action


def wrapped():
    try:
        raising(OSError(errno.ENOMEM, "Cannot allocate memory"))()
    except OSError as error:
        raise BenchError("a.png: cannot be read") from error


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: [0] * 2**60,
        raising(OSError(errno.ENOMEM, "Cannot allocate memory")),
        wrapped,
        *(raising(RuntimeError(text)) for text in CUDA),
    ],
)
def test_missing_memory_is_told_as_such_whatever_says_so(action, tmp_path):
    outcome = guarded(action, tmp_path / "log")
    assert outcome["status"] == "oom", outcome
    assert outcome["reason"].startswith("out of memory: ")
    assert "input" not in outcome


def test_a_data_worker_of_a_unit_that_was_killed_is_killed(tmp_path):
    text = "DataLoader worker (pid 77) is killed by signal: Killed. "
    outcome = guarded(raising(RuntimeError(text)), tmp_path / "log")
    assert outcome == {"status": "killed", "reason": text.strip()}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "No such file"),
        ValueError("the memory bank holds 3 rows, not enough memory banks"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_a_mistake_is_a_mistake(error, tmp_path):
    assert guarded(raising(error), tmp_path / "log")["status"] == "failed"
    assert str(error) in (tmp_path / "log").read_text("utf-8")
