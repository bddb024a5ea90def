from __future__ import annotations

from diffssl.extract.timings import Timings


def test_shares() -> None:
    assert str(Timings(1.0, 2.0, 1.0)) == "decode 25.0%, backbone 50.0%, write 25.0%"
    assert str(Timings()) == "decode 0.0%, backbone 0.0%, write 0.0%"


def test_two_processes() -> None:
    assert Timings(1, 2, 3) + Timings(0.5, 0.5, 0.5) == Timings(1.5, 2.5, 3.5)
