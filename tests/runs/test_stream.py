"""The pipeline: portions that fit into memory, batches in their order, failures told by number."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from vpl.config import ClipConfig
from vpl.errors import ConfigError, DataError
from vpl.machine import Crew
from vpl.method.seeds import seeds
from vpl.method.views import View
from vpl.runs import stream
from vpl.runs.stream import Batch, Portions, Stream, grouped


def view(tags=(2, 0), pixels=None) -> View:
    return View(np.zeros((4, 6, 3), dtype=np.uint8), tags, (4, 6), pixels)


def test_portions_halve_and_remember():
    """Memory for three: a batch of eight becomes four, then two and two; the next one starts with two."""
    portions, tried = Portions(), []

    def work(part):
        tried.append(part.stop - part.start)
        if tried[-1] > 3:
            raise RuntimeError("MPS backend out of memory")
        return views[part]

    views = [view((number,)) for number in range(8)]
    parts = list(portions.each(views, work))
    assert tried == [8, 4, 2, 2, 2, 2] and [one for _, part in parts for one in part] == views
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [part for part, _ in portions.each(views[:3], work)] == [slice(0, 2), slice(2, 3)]


def test_only_one_that_does_not_fit_alone_is_left_out():
    views = [view((number,)) for number in range(3)]

    def work(part):
        if part.stop - part.start > 1 or views[part.start].tags == (1,):
            raise MemoryError
        return views[part.start].tags

    found = list(Portions().each(views, work))
    assert found == [(slice(0, 1), (0,)), (slice(1, 2), None), (slice(2, 3), (2,))]


def test_other_errors_of_the_encoder_are_not_hidden():
    def work(part):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(Portions().each([view(), view()], work))


def test_a_batch_holds_a_bounded_attention(monkeypatch):
    monkeypatch.setattr(stream, "ATTENTION_CELLS", 3 * 16**2)
    grids = {0: (4, 4), 1: (2, 2), 2: (4, 4), 3: (4, 4), 4: (4, 4), 5: (40, 40), 6: (40, 40)}
    assert list(grouped(grids, 8)) == [(0, 2, 3), (4,), (1,), (5,), (6,)]


GRIDS = [(2, 3), (2, 2), (2, 3), None, (2, 3)]


def grid(number: int) -> tuple[int, int]:
    if GRIDS[number] is None:
        raise DataError("no header")
    return GRIDS[number]


def test_on_a_cpu_a_photograph_goes_alone(tiny_clip):
    batches = Stream(tiny_clip, ClipConfig(batch=2), 2).plan(5, grid, lambda *_: None)
    assert [batch.members for batch in batches] == [(0,), (2,), (4,), (1,)]


@pytest.fixture
def pipeline(tiny_clip, monkeypatch) -> Stream:
    monkeypatch.setattr(stream, "most_of", lambda _, config: config.batch)  # as on a GPU
    return Stream(tiny_clip, ClipConfig(batch=2), 2)


def test_batches_come_in_order_with_what_was_made_of_them(pipeline):
    """Image 2 can't be read, 4 changed its size since its header was read, and the batch of image 1 is done."""
    told, ended = [], []
    batches = list(pipeline.plan(5, grid, lambda number, error: told.append((number, str(error)))))
    assert told == [(3, "no header")] and [batch.members for batch in batches] == [(0, 2), (4,), (1,)]

    def read(number):
        if number == 2:
            raise DataError("no pixels")
        height, width = GRIDS[number] if number != 4 else (9, 9)
        side = pipeline.clip.patch
        return view((number,), torch.zeros(3, side * height, side * width))

    def work(members, views):
        assert torch.get_num_threads() == 1
        return [(number, one.tags) for number, one in zip(members, views, strict=True)]

    def finish(batch, portions):
        return [lambda number=number: ended.append(number) for part in portions for number in part.members]

    made = list(pipeline.flow(batches, read, work, finish, lambda batch: batch.members == (1,)))
    assert [one.batch.members for one in made] == [(0, 2), (4,), (1,)] and ended == [0]
    assert [[part.result for part in one.portions] for one in made] == [[[(0, (0,))]], [], []]
    assert all(one.pixels is None for part in made[0].portions for one in part.views)
    assert [[(number, str(error)) for number, error in one.failures] for one in made] == [
        [(2, "no pixels")],
        [(4, "the image has changed while it was being read; start the same command again.")],
        [],
    ]


def test_idle_cores_share_a_photograph_and_change_no_byte(tiny_clip, monkeypatch):
    """One photograph and three threads: pieces of a few rows are taken by several, and make what one thread makes."""
    for name, at_once in (("clip.block.MLP_ROWS", 8), ("clip.block.CPU_SCORES", 1), ("method.seeds.MLP_ROWS", 8)):
        monkeypatch.setattr(f"vpl.{name}_AT_ONCE", at_once)
    side, helped = tiny_clip.patch, []
    pixels = torch.rand(3, 7 * side, 9 * side, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(Crew, "each", lambda *given, real=Crew.each: helped.append(1) or real(*given))

    def work(members, views):
        features = tiny_clip.encode(torch.stack([one.pixels for one in views]))
        return seeds(tiny_clip, features, [torch.eye(5, tiny_clip.dim)], [3], 8.0).cam[0], features.attention

    found = {}
    for workers in (1, 3):
        flow = Stream(tiny_clip, ClipConfig(), workers).flow([Batch(0, (0,), (7, 9))], lambda _: view((), pixels), work)
        (found[workers],) = [one.portions[0].result for one in flow]
    assert helped and all(torch.equal(*pair) for pair in zip(*found.values(), strict=True))


def test_on_a_cpu_the_thread_that_worked_finishes(tiny_clip):
    seen, side = [], tiny_clip.patch

    def finish(batch, portions):
        return [lambda: seen.append(threading.get_ident())]

    def work(members, views):
        seen.append(threading.get_ident())
        return members

    batches = [Batch(number, (number,), (2, 2)) for number in range(4)]
    flow = Stream(tiny_clip, ClipConfig(), 1).flow(
        batches, lambda _: view((), torch.zeros(3, 2 * side, 2 * side)), work, finish
    )
    assert len(list(flow)) == 4 and len(seen) == 8 and len(set(seen)) == 1


def test_an_error_of_the_work_ends_the_flow(pipeline):
    def work(members, views):
        raise ZeroDivisionError

    batches = pipeline.plan(3, grid, lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        list(pipeline.flow(batches, lambda number: view(), work))
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("count", [0, -1, 1025, True])
def test_workers_are_a_count(count):
    with pytest.raises(ConfigError, match="workers were asked for; expected a whole number from 1 to 1024"):
        stream.workers_of(count)
    assert stream.workers_of(3) == 3 and stream.workers_of(None) >= 1
