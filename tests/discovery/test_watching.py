"""Which answers are believed, without any registry."""

from __future__ import annotations

from framework.discovery import Instance, Snapshot
from framework.discovery.watching import LastGood


def of(*ids: str) -> Snapshot:
    return {id: Instance(id, "catalog", f"{id}:1") for id in ids}


def test_plain_answers_are_shown_as_they_are() -> None:
    """While nothing is doubtful, instances come and go at once, the last one too."""
    good = LastGood(hold=3)
    for answer in (of(), of("a"), of("a", "b"), of("b"), of()):
        assert good.accept(answer, now=0) == answer
    assert good.until is None


def test_doubtful_answer_takes_nobody_away() -> None:
    """After a restart instances come back one by one; those seen before stay, new ones are shown at once."""
    good = LastGood(hold=3)
    good.accept(of("a", "b", "c"), now=0)
    assert good.accept(of(), now=10, doubtful=True) == of("a", "b", "c")
    assert good.accept(of("b"), now=11) == of("a", "b", "c")
    assert good.accept(of("b", "d"), now=12) == of("a", "b", "c", "d")
    assert good.until == 13


def test_complete_answer_does_not_end_the_doubt() -> None:
    """A registry that came back may remember all at first, and look at them again only then."""
    good = LastGood(hold=3)
    good.accept(of("a", "b"), now=0)
    assert good.accept(of("a", "b"), now=10, doubtful=True) == of("a", "b")
    assert good.accept(of("a"), now=11) == of("a", "b")


def test_nobody_shown_is_nobody_to_protect() -> None:
    """A watch that begins with doubtful answers, or with none, trusts them."""
    good = LastGood(hold=3)
    assert good.accept(of(), now=0, doubtful=True) == of()
    assert good.accept(of("a"), now=1, doubtful=True) == of("a")
    assert good.accept(of(), now=2) == of()


def test_confirmed_answer_is_believed() -> None:
    """Once the time is up an answer is confirmed, and then it counts, empty or not."""
    good = LastGood(hold=3)
    good.accept(of("a", "b"), now=0)
    good.accept(of("a"), now=1, doubtful=True)
    assert [good.due(now) for now in (3.9, 4.0)] == [False, True]
    assert good.accept(of(), now=4, confirmed=True) == of()
    assert good.accept(of("a"), now=5) == of("a")
    assert good.accept(of(), now=6) == of()


def test_doubt_again_begins_the_time_again() -> None:
    """A registry that restarts twice gets the whole time twice."""
    good = LastGood(hold=3)
    good.accept(of("a"), now=0)
    good.accept(of(), now=1, doubtful=True)
    good.accept(of(), now=2)
    assert good.until == 4
    good.accept(of(), now=3, doubtful=True)
    assert good.until == 6
