"""Clocks of recordings: sessions, stamps that repeat, stretches without a gap, and each stretch's own rate.

Axes: n rows of one sensor in the order of the file. Whatever is split or left out is said (Notes); what would mix two
recordings, or average or drop rows, is refused.
"""

import numpy as np

from bookkeeping.commands import UserError
from dataset.resample import HIGHEST, LOWEST, local_interval

SET_BACK = 5.0  # s: a clock that goes back by more was set back, or began anew; by less, rows are out of order
GAP = 0.1  # s without a sample that end a stretch, or 2.5 intervals where those are longer
BURSTS = "samples in bursts, left out"
TO_SPREAD = '; give their rate ("rate": HZ beside the column) to spread them'
SLACK = 1.05  # by which a rate may pass its limits


class Notes:
    """What was left out or split: lines for the user, equal reasons together."""

    SHOWN = 3

    def __init__(self):
        self.found = {}

    def add(self, reason, detail):
        self.found.setdefault(reason, []).append(detail)

    def take(self, other):
        """Add all that other Notes hold."""
        for reason, details in other.found.items():
            self.found.setdefault(reason, []).extend(details)

    def lines(self):
        for reason, details in self.found.items():
            more = f", and {len(details) - self.SHOWN} more" if len(details) > self.SHOWN else ""
            count = f" ({len(details)})" if len(details) > 1 else ""
            yield f"{reason}{count}: {'; '.join(details[: self.SHOWN])}{more}"


def between(begin, end):
    """A stretch of time in words."""
    return f"{begin:.1f} to {end:.1f} s"


def in_order(time, rows, place, clock, notes):
    """Rows in the order of time, session after session: a list of row numbers (m,), one a session.

    `rows` (n,) are places in the file, `place` says one of them in words. A clock that goes back by more than SET_BACK
    begins a session; rows that are out of order by less are sorted if the clock says `sort`. Raises UserError.
    """
    back = np.flatnonzero(np.diff(time) < -SET_BACK) + 1
    for at in back.tolist():
        notes.add(
            "the clock goes back, and a new recording begins there",
            f"{place(rows[at])}, by {time[at - 1] - time[at]:.1f} s",
        )
    sessions = np.split(np.arange(len(time)), back)
    result = []
    for session in sessions:
        t = time[session]
        late = np.flatnonzero(np.diff(t) < 0)
        if len(late):
            at = place(rows[session[late[0] + 1]])
            if not clock.sort:
                raise UserError(
                    f"{at}: the time goes back by {t[late[0]] - t[late[0] + 1]:.3g} s; if rows are only out of order, "
                    'say "sort": true under "time": they are put in order where that mixes no two recordings'
                )
            order = np.argsort(t, kind="stable")
            _check_mixed(t, order, at)
            session = session[order]
        result.append(session)
    return result


def _check_mixed(time, order, where):
    """Raise UserError if more rows lie within a part that `order` sorts than its duration can hold at the usual rate.

    The usual interval is that of rows as they stand in the file, where two recordings are not mixed yet.
    """
    steps = np.abs(np.diff(time))
    usual = np.quantile(steps[steps > 0], 0.4) if (steps > 0).any() else 0  # swapped pairs: half are 1, half are 3
    time = time[order]
    moved = np.concatenate([[0], (order != np.arange(len(order))).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(moved))
    for first, last in edges.reshape(-1, 2).tolist():
        begin, end = time[max(first - 1, 0)], time[min(last, len(time) - 1)]
        distinct = 1 + np.count_nonzero(np.diff(time[first:last]))
        if distinct > 1.3 * (end - begin) / max(usual, 1e-9) + 2 or (last - first > 3 and end - begin < usual):
            what = f"{where}: sorting would mix rows of two recordings that share their times"
            todo = (
                "name the column that tells them apart as 'recording', or split the file where the clock was set back"
            )
            raise UserError(f"{what}; {todo}")


def spread(time, values, rows, place, clock, rate, notes):
    """(time (m,), which rows are kept (n,) bool): strictly increasing stamps of a session that is in order.

    Copies of a row are left out; stamps that repeat, or come in bursts, are spread at the rate that is told, else
    refused: rows that share a stamp are neither dropped nor averaged. Raises UserError.
    """
    keep = np.ones(len(time), bool)
    tied = np.diff(time) == 0
    if not rate:
        same = tied & ((values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))).all(1)
        keep[1:] = ~same
        if same.any():
            notes.add(
                "rows that stand there twice, taken once",
                f"{place(rows[np.flatnonzero(same)[0] + 1])}, {same.sum()} rows",
            )
        again = np.flatnonzero(np.diff(time[keep]) == 0)
        if len(again):
            at = place(rows[np.flatnonzero(keep)[again[0] + 1]])
            raise UserError(
                f"{at}: different rows share the time {time[keep][again[0]]:.6g} s; if the clock is coarser than the "
                'samples, give their rate too ("rate": HZ beside the column); if several positions, users or '
                "recordings stand in the file, name the column that tells them apart"
            )
        return time[keep], keep
    steps = np.diff(time)
    if not tied.any() and not bursts(steps):
        return time, keep
    return _at_rate(time, rate, place(rows[0])), keep


def _at_rate(time, rate, where):
    """Stamps (n,) that repeat or come in bursts, spread evenly from the first of each part without a gap."""
    first = np.flatnonzero(np.concatenate([[True], np.diff(time) > 0.25 / rate]))  # of each burst
    count = np.diff(np.append(first, len(time)))
    steps, held = np.diff(time[first]), np.maximum(count[1:], count[:-1]) / rate
    if len(steps) > 3 and not 0.75 < (usual := np.median(count[:-1] / steps) / rate) < 1.33:
        raise UserError(f"{where}: the rate is said to be {rate:g} Hz, but the stamps tell of {usual * rate:.3g}")
    parts = np.flatnonzero(steps > held + max(GAP, 2.5 / rate)) + 1
    result = np.empty(len(time))
    for bursts_of in np.split(np.arange(len(first)), parts):
        begin, n = first[bursts_of[0]], int(count[bursts_of].sum())
        span, most = time[first[bursts_of[-1]]] - time[begin], count[bursts_of].max()
        true = rate
        if len(bursts_of) > 2:
            seen = (n - (count[bursts_of[0]] + count[bursts_of[-1]]) / 2) / span
            if abs(seen / rate - 1) > 0.1 + most / n:
                raise UserError(f"{where}: the rate is said to be {rate:g} Hz, but the stamps tell of {seen:.3g}")
            if most / n < 0.005 or abs(seen / rate - 1) > most / n:  # the stamps tell more exactly
                true = seen
        result[begin : begin + n] = time[begin] + np.arange(n) / true
    if (np.diff(result) <= 0).any():
        raise UserError(f"{where}: at {rate:g} Hz the rows of a burst last longer than to the next; is that the rate?")
    return result


def bursts(steps):
    """Whether samples arrive in bursts: more than a quarter of the intervals below a quarter of their mean."""
    return len(steps) > 3 and float((steps < 0.25 * steps.mean()).mean()) > 0.25


def stretches(time, max_gap, where, notes):
    """Where samples follow on from each other at 20 Hz or more: a list of (first, last + 1) rows of `time` (n,).

    The rate is looked at where it is: a part below 20 Hz, above the highest, or in bursts gives no stretch but a note.
    """
    if len(time) < 3:
        notes.add("shorter than three samples", f"{where}, {between(time[0], time[-1]) if len(time) else 'none'}")
        return []
    steps = np.diff(time)
    usual = float(np.median(steps))
    limit = max_gap or max(GAP, 2.5 * min(usual, SLACK / LOWEST))
    edges = np.concatenate([[0], np.flatnonzero(steps > limit + 1e-9) + 1, [len(time)]])
    found, said = [], Notes()
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if last - first > 2:
            found += _fast_enough(time, first, last, where, said)
        else:
            said.add("one or two samples between gaps, left out", f"{where}, {between(time[first], time[last - 1])}")
    if not found and bursts(steps):  # gaps lie between them
        notes.add(BURSTS, f"{where}, {between(time[0], time[-1])}{TO_SPREAD}")
        return []
    notes.take(said)
    if not found and usual > SLACK / LOWEST:
        notes.add(
            "below 20 Hz, left out",
            f"{where}, {between(time[0], time[-1])} at {1 / usual:.3g} Hz; is the time's unit right?",
        )
    return found


def _fast_enough(time, first, last, where, notes):
    """The stretches within the rows first to last of `time`, none of which is a gap."""
    steps = np.diff(time[first:last])
    local = local_interval(steps)
    slow = local > SLACK / LOWEST
    edges = np.concatenate([[0], np.flatnonzero(np.diff(slow)) + 1, [len(slow)]])
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        begin, end = first + a, first + b + 1
        part, times = steps[a:b], f"{where}, {between(time[begin], time[end - 1])}"
        if slow[a]:
            notes.add("below 20 Hz, left out", f"{times} at {1 / np.median(part):.3g} Hz")
        elif 1 / np.median(part) > HIGHEST * SLACK and not bursts(part):
            notes.add(
                f"above {HIGHEST} Hz, left out", f"{times} at {1 / np.median(part):.4g} Hz; is the time's unit right?"
            )
        elif bursts(part) or (part / local[a:b]).mean() > 1.5:
            notes.add(BURSTS, times + TO_SPREAD)
        elif end - begin > 2:
            yield begin, end
