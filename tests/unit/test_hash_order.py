"""The order of GLib's hash tables.  Expected orders were seen with QEMU 7.2."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.hash_order import HashOrder, string_hash

LISTED = (
    "testdev logged compat_monitor0 file wctablet usock spicevmc ring null vc vdagent pty mux tsock 1bad msmouse udp "
    "clirec"
)
ADDED = (
    "compat_monitor0 null ring file pty usock tsock clirec udp mux vc msmouse wctablet testdev spicevmc vdagent logged "
    "1bad"
)


def test_hash_is_signed_and_never_a_mark() -> None:
    assert string_hash("") == 5381
    assert string_hash("a") == 5381 * 33 + 97
    assert string_hash("\xff") == ((5381 * 33 + 0xC3 - 256) * 33 + 0xBF - 256) % (1 << 32)


def test_order_with_growth() -> None:
    assert list(HashOrder(ADDED.split())) == LISTED.split()
    added = "compat_monitor0 d2 da de df dh dk dm dp dq dr ds"
    assert list(HashOrder(added.split())) == "dm d2 df de compat_monitor0 dk dq dp dr dh da ds".split()


def test_removal_by_an_iterator_leaves_the_places() -> None:
    order = HashOrder(ADDED.split())
    order.discard("usock", shrink=False)
    order.discard("nobody")
    assert list(order) == LISTED.replace("usock ", "").split()
    order.add("usock")
    assert list(order) == LISTED.split()
    assert "usock" in order
    assert "nobody" not in order


def test_removal_shrinks_the_table() -> None:
    order = HashOrder(f"key{number}" for number in range(100))
    for number in range(3, 100):
        order.discard(f"key{number}")
    assert list(order) == list(HashOrder(["key0", "key1", "key2"]))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 40))))
def test_it_is_a_set(steps: list[tuple[bool, bool, int]]) -> None:
    order = HashOrder()
    expected: set[str] = set()
    for adding, shrink, number in steps:
        key = f"k{number}"
        if adding:
            order.add(key)
            expected.add(key)
        else:
            order.discard(key, shrink=shrink)
            expected.discard(key)
        found = list(order)
        assert len(found) == len(expected)
        assert set(found) == expected
        assert all(key in order for key in expected)
