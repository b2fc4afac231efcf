"""What a launcher asks the service for, and when: as much as can start now, and not what others could start sooner.

Usually it asks for whatever the allocation can run at all; the service gives no more than has room together. Once a
job came that does not fit beside those that run, it asks for what does ("narrow"), so that such jobs are left to
others; when more becomes free, the next report has the service answer what is being asked, and it asks again.

What has waited in vain for a while has its turn: a launcher that is busy takes one such job and keeps for it what
becomes free (a claim). Now and then it gives it back for a moment, in case another can run it at once. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from balsam_exec.launcher.events import Acquire
from balsam_exec.launcher.placement import SERIAL, WHOLE, Need, Node, Vacancy, place, room, vacancies
from balsam_exec.model.base import MAX_BULK

#: How many times as long as it took to make room for a claim, the next one is not made.
_REST = 4


@dataclass(frozen=True, slots=True)
class Habits:
    """How a launcher asks, in seconds."""

    prefetch: float = 0.4  #: of work to hold in advance
    hold: float = 2.0  #: what does not fit, before it is given back
    patience: float = 20.0  #: of a job that others pass, before room is made for it
    offer: float = 10.0  #: a claim, before others may have it
    moment: float = 0.5  #: that they have for it


class Asker:
    """At most one request is under way. `asked` is set until `answered` is called."""

    def __init__(self, nodes: int, habits: Habits, now: float) -> None:
        self._is_wide = nodes > 1
        self._habits = habits
        self._rate = _Rate(now)
        self._usual = SERIAL  #: what the last job needed, and so probably the next
        self._misfits: set[Need] = set()
        self._turns = 0
        self._narrow_asks = 0
        self._turn_at = now + habits.patience / 4
        self._claimed: Need | None = None
        self._claimed_at = now
        self._again_at = math.inf  #: when to take a claim that was offered to others
        self._more_room = False
        self._gave_back = False  #: a job that what stands would bring again
        self._stopping = False  #: whether the service was told to answer
        self.asked: Acquire | None = None
        self.asked_at = now

    def due(self, busy: bool) -> float:
        """When there may be something to ask for whatever happens; `busy` if jobs are running here."""
        if self.asked is not None:
            return math.inf
        return self._again_at if self._claimed else self._turn_at if busy and self._takes_turns else math.inf

    # --- what happened

    def answered(self) -> bool:
        """The request is answered; whether it was for a claim."""
        was, self.asked = self.asked, None
        return was is not None and was.claims

    def started(self, need: Need) -> None:
        self._usual = need

    def ended(self, now: float) -> None:
        self._rate.count(now)
        self._more_room = True

    def told(self) -> bool:
        """A report goes out; whether it is to say that more has become free than is being asked for."""
        more, self._more_room = self._more_room, False
        return more and self.asked is not None and self.asked.narrow

    def is_enough(self, ending: bool) -> bool:
        """Whether the service is to answer what stands, now: it asks for the wrong thing, or nothing is wanted."""
        if self.asked is None or not self.asked.stands or self._stopping:
            return False
        self._stopping = ending or self._gave_back or bool(self._misfits)
        return self._stopping

    def gave_back(self) -> None:
        """A job, because of something that changed since it was asked for."""
        self._gave_back = True

    def did_not_fit(self, needs: set[Need]) -> None:
        """Though something is free."""
        self._misfits |= needs

    def claim(self, need: Need, now: float) -> None:
        """What becomes free is kept for a job that needs this."""
        if self._claimed is None:
            self._claimed_at = now
        self._claimed, self._again_at = need, math.inf

    def offer(self, now: float) -> None:
        """The claimed job was given back; others may have it now."""
        self._again_at = now + self._habits.moment

    def nothing_claimed(self, now: float) -> None:
        """There is no claim here: it has gone, unless it is offered to others."""
        if self.asked is None and math.isinf(self._again_at):
            self.claim_is_over(now)

    def claim_is_over(self, now: float) -> None:
        """The job has started, or is another's by now."""
        if self._claimed is not None:
            self._claimed, self._again_at = None, math.inf
            self._turn_at = now + max(self._habits.patience, _REST * (now - self._claimed_at))

    # --- what follows

    def next(self, nodes: Sequence[Node], held: int, busy: bool, now: float) -> Acquire | None:
        """What to ask for, if anything, with so many jobs in hand that wait here; it is under way then."""
        if self.asked is not None:
            return None
        if self._claimed is not None:
            found = self._claim_again() if now >= self._again_at else None
        elif busy and self._takes_turns and now >= self._turn_at:
            found = self._turn(now)
        else:
            found = self._ordinary(nodes, held, now)
        if found is not None:
            self.asked, self.asked_at = found, now
            self._more_room = self._gave_back = self._stopping = False
        return found

    @property
    def _takes_turns(self) -> bool:
        return self._is_wide or bool(self._misfits)

    def _turn(self, now: float) -> Acquire:
        """One job that has waited for long: of several nodes, of those that do not fit here, or one and then the
        other."""
        self._turns += 1
        self._turn_at = now + self._habits.patience / 4
        wide = self._is_wide and (not self._misfits or self._turns % 2 == 1)
        return Acquire(1, claims=True, min_nodes=2 if wide else 1, min_wait_sec=self._habits.patience)

    def _claim_again(self) -> Acquire:
        assert self._claimed is not None
        return Acquire(1, claims=True, min_nodes=self._claimed.nodes)

    def _ordinary(self, nodes: Sequence[Node], held: int, now: float) -> Acquire | None:
        usual = self._usual
        self._misfits = {need for need in self._misfits if place(nodes, need) is None}
        free = room(nodes, usual)
        ahead = int(self._rate.at(now) * self._habits.prefetch)
        wanted = min(free + max(0, ahead - held), MAX_BULK)
        kinds = vacancies(nodes)
        vacant = kinds[self._narrow_asks % len(kinds)]
        # Work held in advance is replenished when half of it is gone, so that requests are few and full.
        if wanted > 0 and (free or wanted >= ahead / 2):
            in_advance = (wanted - min(wanted, free)) * usual.nodes * usual.occupancy / WHOLE
            found = Acquire(wanted, max_aggregate_nodes=vacant.aggregate + in_advance)
            if not self._misfits:
                return found if self._is_wide or wanted == 1 else replace(found, stands=True)
            vacant = vacant.or_for(usual) if in_advance else vacant
        elif vacant.nodes:  # there is no room for another job like the last one, but perhaps for smaller ones
            found = Acquire(1, max_aggregate_nodes=vacant.aggregate)
        else:
            return None
        self._narrow_asks += 1
        wait = self._habits.patience / 4 if len(kinds) > 1 else math.inf
        return _narrowed(found, vacant, wait)


def _narrowed(ask: Acquire, vacant: Vacancy, wait: float) -> Acquire:
    return replace(
        ask,
        narrow=True,
        wait=wait,
        max_nodes=vacant.nodes,
        max_gpus_per_node=vacant.gpus / WHOLE,
        max_cores_per_node=vacant.cores,
        min_packing_count=vacant.packing,
    )


class _Rate:
    """Ends per second, over about the last half second: so many may start."""

    _MEMORY = 0.5

    def __init__(self, now: float) -> None:
        self._weight = 0.0
        self._at = now

    def count(self, now: float) -> None:
        self._weight = self.at(now) * self._MEMORY + 1
        self._at = now

    def at(self, now: float) -> float:
        return self._weight * math.exp((self._at - now) / self._MEMORY) / self._MEMORY
