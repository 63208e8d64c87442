"""Data types: what float32 means, and the weights of frozen networks."""

import pytest
import torch

from utils.distributed import process_group


@pytest.fixture
def tf32_allowed():
    """TF32 for convolutions, as by default, and for matrix products, as with TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_float32_is_computed_without_tf32_in_training_caching_and_evaluation(tf32_allowed):
    with process_group("cpu"):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
