"""What daemons hold, and what counts as a leak."""

from ecd.lab.footprint import MIB, Footprint, Footprints, leaks, told_of_footprints
from ecd.lab.usage import Usage


def held(fds: int = 20, tasks: int = 9, mib: float = 50.0) -> Footprints:
    return {
        "edge": Footprint(Usage(1, round(mib * MIB), fds), tasks),
        "cloud": Footprint(Usage(2, 40 * MIB, 7), 5),
    }


def test_what_comes_and_goes_is_no_leak() -> None:
    assert not list(leaks([held(), held(fds=35, tasks=80, mib=90), held(mib=55), held(fds=19)]))


def test_whatever_is_left_is_named() -> None:
    assert list(leaks([held(), held(), held(fds=21)])) == [
        "edge: 21 descriptors at the end, and 20 after the warm-up"
    ]
    assert list(leaks([held(), held(tasks=10)])) == ["edge: 10 tasks at the end, and 9 after the warm-up"]
    growing = [held(mib=50 + 5 * slice_) for slice_ in range(10)]
    assert list(leaks(growing)) == ["edge: memory grew by 30.0 MiB after the warm-up"]
    # Allocators breathe.
    assert not list(leaks([held(mib=50 + slice_) for slice_ in range(10)]))


def test_one_footprint_is_within_another_whatever_its_memory() -> None:
    few, many = held(mib=90)["edge"], held(fds=21)["edge"]
    assert few.within(many)
    assert not many.within(few)
    assert not held(tasks=10)["edge"].within(few)


def test_it_is_told_from_the_warm_up_to_the_end() -> None:
    edge, cloud = told_of_footprints([held(), held(mib=75), held(fds=21, mib=60)]).splitlines()
    assert edge == (
        "edge: descriptors 20 after the warm-up, 21 at the end; tasks 9, 9; "
        "resident 50.0 MiB, at most 75.0, 60.0"
    )
    assert cloud.startswith("cloud: descriptors 7 after the warm-up, 7 at the end; tasks 5, 5")
