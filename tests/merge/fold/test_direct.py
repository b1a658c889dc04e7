"""Output files written in any order, at any place, directly or through the cache."""

import errno
import fcntl
import os
import random

import pytest
import torch

from plyfold.merge.fold.direct import ALIGNMENT, OutputFile

SIZE = 5 * ALIGNMENT + 123


def no_direct(monkeypatch):
    real = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr("plyfold.merge.fold.direct.os.open", refuse)


def larger_pages(monkeypatch):
    real = os.pwrite

    def refuse(descriptor, data, position):
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data, position)

    monkeypatch.setattr("plyfold.merge.fold.direct.os.pwrite", refuse)


def is_direct(descriptor):
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("change", [lambda monkeypatch: None, no_direct, larger_pages])
@pytest.mark.parametrize("cuts", [(), (1,), (ALIGNMENT,), (512, 3 * ALIGNMENT + 7), (ALIGNMENT - 1, ALIGNMENT + 1)])
def test_pieces_written_in_any_order_make_the_whole(tmp_path, monkeypatch, change, cuts):
    change(monkeypatch)
    expected = random.Random(0).randbytes(SIZE)
    pieces = list(zip((0, *cuts), (*cuts, SIZE), strict=True))
    random.Random(1).shuffle(pieces)
    memory = torch.empty(SIZE + 2 * ALIGNMENT, dtype=torch.uint8)
    page = -memory.data_ptr() % ALIGNMENT
    with OutputFile(tmp_path / "file", SIZE) as file:
        for start, stop in pieces:
            place = page + start % ALIGNMENT
            block = memory[place : place + stop - start]
            block.copy_(torch.frombuffer(bytearray(expected[start:stop]), dtype=torch.uint8))
            file.write(start, memoryview(block.numpy()), block.data_ptr())
        found = bytearray(SIZE)
        file.read_into(0, memoryview(found))
        file.flush()
    assert found == expected == (tmp_path / "file").read_bytes()


def test_whole_pages_go_past_the_cache(tmp_path, monkeypatch):
    probe = os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY)
    os.close(probe)
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system knows no direct writes")
    real, written = os.pwrite, {True: 0, False: 0}

    def count(descriptor, data, position):
        done = real(descriptor, data, position)
        written[bool(is_direct(descriptor))] += done
        return done

    monkeypatch.setattr("plyfold.merge.fold.direct.os.pwrite", count)
    memory = torch.zeros(8 * ALIGNMENT, dtype=torch.uint8)
    block = memory[-memory.data_ptr() % ALIGNMENT :][100 : 100 + 5 * ALIGNMENT]
    with OutputFile(tmp_path / "file", 6 * ALIGNMENT) as file:
        file.write(100, block.numpy().data, block.data_ptr())
    assert written == {True: 4 * ALIGNMENT, False: ALIGNMENT}


def test_memory_at_another_place_of_its_page_goes_through_the_cache(tmp_path):
    data = torch.arange(3 * ALIGNMENT, dtype=torch.int16).view(torch.uint8)[100:]
    with OutputFile(tmp_path / "file", 7 * ALIGNMENT) as file:
        file.write(5, memoryview(data.numpy()), data.data_ptr())
    assert (tmp_path / "file").read_bytes()[5 : 5 + len(data)] == bytes(data.numpy())


def test_what_an_earlier_run_wrote_stays_and_the_size_is_right(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    with OutputFile(tmp_path / "file", 50):
        pass
    assert (tmp_path / "file").read_bytes() == b"x" * 50
    with OutputFile(tmp_path / "file", 70):
        pass
    assert (tmp_path / "file").read_bytes() == b"x" * 50 + bytes(20)


def test_a_file_system_that_cannot_reserve_still_gets_the_size(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("plyfold.merge.fold.direct.os.posix_fallocate", refuse)
    with OutputFile(tmp_path / "file", SIZE):
        assert (tmp_path / "file").stat().st_size == SIZE
