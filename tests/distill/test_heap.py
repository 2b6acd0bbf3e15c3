"""Freed memory is kept inside, and given back at the end."""

import platform

import psutil
import pytest
import torch

from edgekit.distill.heap import keeping_freed_memory

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
MEGABYTE = 1 << 20
BLOCK = 64 * MEGABYTE


def faults_of_ten_blocks():
    """Page faults of blocks that are touched and freed, one after another, after a first one."""
    torch.ones(BLOCK // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(BLOCK // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_freed_block_is_used_again_inside_and_given_back_at_the_end():
    process = psutil.Process()
    outside = faults_of_ten_blocks()
    before = process.memory_info().rss
    with keeping_freed_memory():
        inside = faults_of_ten_blocks()
        assert process.memory_info().rss > before + BLOCK // 2
    assert inside < outside / 10
    assert process.memory_info().rss < before + BLOCK // 2
    assert faults_of_ten_blocks() > outside / 2


def test_it_is_given_back_after_an_error_too():
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError), keeping_freed_memory():
        torch.ones(BLOCK // 4)
        raise ValueError
    assert psutil.Process().memory_info().rss < before + BLOCK // 2
