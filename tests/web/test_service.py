"""The line before the model: its length, its patience, and what becomes of dropped work."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from geopak.web.photos import Limits
from geopak.web.service import BusyError, Proceed, Service, TooSlowError
from geopak.web.site import delete_old


def nothing(proceed: Proceed) -> None:
    proceed()


def test_work_is_done_one_after_another_and_in_its_order() -> None:
    service = Service(Limits(max_waiting=30))
    at_once, most, order = 0, 0, []

    def work(proceed: Proceed, number: int) -> int:
        proceed()
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.002)
        at_once -= 1
        order.append(number)
        return number**2

    async def ask() -> list[int]:
        return await asyncio.gather(*(service.run(work, k) for k in range(20)))

    assert asyncio.run(ask()) == [k**2 for k in range(20)]
    assert (most, order) == (1, list(range(20)))


def test_a_full_line_refuses_and_opens_again() -> None:
    service, gate = Service(Limits(max_waiting=3)), threading.Event()

    def wait(_: Proceed) -> None:
        gate.wait(10)

    async def ask() -> None:
        waiting = [asyncio.create_task(service.run(wait)) for _ in range(3)]
        await asyncio.sleep(0.02)
        with pytest.raises(BusyError):
            await service.run(nothing)
        gate.set()
        await asyncio.gather(*waiting)
        assert await service.run(nothing) is None

    asyncio.run(ask())


def test_what_waits_too_long_is_dropped_and_what_works_too_long_still_counts() -> None:
    service, gate, done = Service(Limits(max_waiting=2, timeout_s=0.1)), threading.Event(), []

    def wait(_: Proceed) -> None:
        gate.wait(10)

    def note(_: Proceed, number: int) -> None:
        done.append(number)

    async def ask() -> None:
        working = asyncio.create_task(service.run(wait))
        waiting = asyncio.create_task(service.run(note, 1))
        for task in (working, waiting):
            with pytest.raises(TooSlowError):
                await task
        # One has been dropped, the other is still at work.
        third = asyncio.create_task(service.run(note, 3))
        await asyncio.sleep(0.02)
        with pytest.raises(BusyError):
            await service.run(nothing)
        gate.set()
        await third

    asyncio.run(ask())
    assert done == [3]


@pytest.mark.parametrize("how", ["late", "gone", "closed"])
def test_work_that_nobody_waits_for_ends_at_its_next_part(how: str) -> None:
    service = Service(Limits(timeout_s=0.05 if how == "late" else 60))
    begun, ended = threading.Event(), threading.Event()
    parts: list[int] = []

    def work(proceed: Proceed) -> None:
        begun.set()
        try:
            for part in range(1000):
                proceed()
                parts.append(part)
                time.sleep(0.01)
        finally:
            ended.set()

    async def ask() -> None:
        task = asyncio.create_task(service.run(work))
        await asyncio.to_thread(begun.wait, 10)
        if how == "gone":
            task.cancel()
        elif how == "closed":
            service.close()
        with pytest.raises(asyncio.CancelledError if how == "gone" else TooSlowError):
            await task

    asyncio.run(ask())
    assert ended.wait(10)
    assert len(parts) < 900


def test_an_error_reaches_who_asked_and_frees_the_place() -> None:
    service = Service(Limits(max_waiting=1))

    async def ask() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await service.run(lambda _: 1 / 0)

    asyncio.run(ask())


def test_old_files_are_deleted_and_young_ones_kept(tmp_path: Path) -> None:
    import os

    for name in ("old/a.jpg", "old/deep/b.jpg", "mixed/old.jpg", "mixed/young.jpg", "young.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    outside = tmp_path.parent / "outside.jpg"
    outside.write_bytes(b"x")
    (tmp_path / "link").symlink_to(outside)
    past = time.time() - 100
    for path in [*tmp_path.rglob("*"), tmp_path]:
        if "young" not in path.name and path.name != "link":
            os.utime(path, (past, past))
    os.utime(outside, (past, past))
    delete_old(tmp_path, 50)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"mixed/young.jpg", "young.jpg"}
    assert outside.is_file()
