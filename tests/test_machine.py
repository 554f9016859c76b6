"""Which device a name stands for, and what one core each means."""

from __future__ import annotations

import threading

import pytest
import torch

from vpl import machine
from vpl.errors import ModelError

OWN_BFLOAT16 = machine.native_bfloat16
"""As it is where no test replaces it."""


@pytest.mark.parametrize("cuda, mps, wanted", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_best_device(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.device_of("auto") == torch.device(wanted) and machine.device_of("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="'cuda:77' is not there; use cpu"):
        machine.device_of("cuda:77")


@pytest.mark.parametrize("native, wanted", [(True, "bfloat16"), (False, "float32")])
def test_precision_auto_is_what_the_device_multiplies_itself(monkeypatch, native, wanted):
    monkeypatch.setattr(machine, "native_bfloat16", lambda device: native)
    assert machine.precision_of("auto", "cpu") == wanted
    assert [machine.precision_of(name, "cpu") for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    "told, native", [({}, False), ({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_a_processor_tells_what_it_multiplies(monkeypatch, told, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert OWN_BFLOAT16(torch.device("cpu")) is native and OWN_BFLOAT16(torch.device("meta")) is False


@pytest.mark.parametrize("capability, native", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_tells_what_it_multiplies(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert OWN_BFLOAT16(torch.device("cuda")) is native


def test_one_core_each_ends_with_the_block():
    before = torch.get_num_threads()
    with machine.one_core_each():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_memory_that_runs_out_is_told_from_other_errors():
    def fails(error: Exception):
        raise error

    assert machine.unless_out_of_memory(fails, MemoryError()) is None
    assert machine.unless_out_of_memory(fails, torch.OutOfMemoryError("CUDA")) is None
    assert machine.unless_out_of_memory(len, "abc") == 3
    with pytest.raises(RuntimeError, match="shape"):
        machine.unless_out_of_memory(fails, RuntimeError("shape"))


def test_a_pool_that_one_of_its_own_threads_ends_waits_for_nobody():
    begun = threading.Event()

    def left() -> None:
        begun.wait()
        pools.pop().close()  # as when this thread collects a forgotten pipeline

    def pipeline():
        with machine.threads(2) as pool, machine.threads(1) as other:
            yield pool, other

    flow = pipeline()
    pool, other = next(flow)
    pools = [flow]
    ended = pool.submit(left)
    waiting = other.submit(ended.result)  # as the thread of an encoder waits for that of a reader
    begun.set()
    assert waiting.result(timeout=20) is None


def test_idle_threads_take_pieces_and_busy_ones_do_not():
    """Two of three threads work: the third one and one of them meet in two pieces; once it works too, nobody helps."""
    with machine.threads(3) as pool, torch.no_grad():
        crew, seen, together = machine.Crew(pool, 3), [], threading.Barrier(2)

        def piece(number: int) -> None:
            together.wait(20)
            seen.append((number, torch.is_grad_enabled()))

        with crew.at_work(), crew.at_work():
            machine.shared(piece, [1, 2])
        assert sorted(seen) == [(1, False), (2, False)]
        alone: list[int] = []
        with crew.at_work(), crew.at_work(), crew.at_work():
            machine.shared(lambda _: alone.append(threading.get_ident()), range(4))
        assert set(alone) == {threading.get_ident()} and len(alone) == 4


def test_a_piece_that_fails_tells_whoever_shared_it_and_leaves_nobody_busy():
    def piece(number: int) -> None:
        if number == 3:
            raise ZeroDivisionError

    with machine.threads(2) as pool:
        crew = machine.Crew(pool, 2)
        for _ in range(3):
            with crew.at_work(), pytest.raises(ZeroDivisionError):
                machine.shared(piece, range(6))
        with crew.at_work():
            assert crew._idle == 1


@pytest.mark.parametrize("told", ["unable to mmap 70052 bytes: Cannot allocate memory (12)", "can't start new thread"])
def test_libraries_tell_of_memory_in_words_of_their_own(told):
    assert machine.out_of_memory(RuntimeError(told)) and not machine.out_of_memory(RuntimeError("shapes differ"))
