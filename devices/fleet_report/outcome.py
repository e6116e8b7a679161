"""The outcome: one sentence for who is tired, what to look at next, and the figures of the whole run."""

import math
from typing import Literal

from devices.engines.engine import Limits
from devices.fleet.calibration import TOLERANCE
from devices.fleet.record import FleetRecord
from devices.fleet_report.axis import factor
from devices.fleet_report.device_tables import energy_text, sum_of
from devices.fleet_report.limits import asked_cores, far_off, not_in_force, step_error
from devices.page import clean, figures
from devices.text import MISSING, bytes_text, duration_text, number_text, percent_text

_GOOD = {
    "rounds": "All rounds are done",
    "target-accuracy": "The target is reached",
    "steps": "All steps of the budget are done",
}

Verdict = Literal["reached", "not-reached"]


def accuracy(record: FleetRecord) -> float | None:
    """Of the last round that was evaluated."""
    known = [c.round.accuracy for c in record.rounds if c.round.accuracy is not None]
    return next((value for value in reversed(known) if math.isfinite(value)), None)


def went_as_planned(record: FleetRecord) -> bool:
    """Whether it ended by what was asked of it, with a round at least."""
    return record.outcome in _GOOD and bool(record.rounds)


def outcome(record: FleetRecord) -> tuple[Verdict, str]:
    """Whether it went as planned, and the sentence."""
    folded = {name for committed in record.rounds for name in committed.devices}
    good = went_as_planned(record)
    if not record.rounds:
        begin = "Nothing was trained, for no round was committed"
    else:
        begin = _GOOD.get(record.outcome, "Ended early")
    sentence = begin if good else f"{begin}: {record.outcome or 'no reason is known'}"
    if record.rounds:
        of = f", with updates of {len(folded)} of {_count(len(record.devices), 'device')}" if folded else ""
        colon = ":" if good else ";"
        done = f"{_count(len(record.rounds), 'round')} in {duration_text(record.seconds)}"
        sentence = f"{sentence.rstrip('.')}{colon} {done}"
        sentence += f"{of}, accuracy {percent_text(accuracy(record))}" if accuracy(record) is not None else of
    return ("reached" if good else "not-reached"), sentence if sentence[-1] in ".?!" else f"{sentence}."


def header(record: FleetRecord) -> str:
    """The sentence, what to look at, and what the run was."""
    verdict, sentence = outcome(record)
    worries = "".join(f"<li>{clean(text)}</li>" for text in concerns(record))
    return (
        f"<header><h1>Fleet {clean(record.fleet)} on {clean(record.data)}</h1>"
        f'<p class="outcome {verdict}"><strong>{clean(sentence)}</strong></p>'
        + (f'<ul class="concerns" aria-label="To be looked at">{worries}</ul>' if worries else "")
        + f"<p>Emulated by {clean(record.engine)} on {clean(record.machine)}, started {clean(record.started)},"
        f" seed {record.seed}.</p></header>"
    )


def concerns(record: FleetRecord) -> list[str]:
    """What keeps this run from being what was asked for, each in a few words."""
    devices = record.devices
    worst = max((abs(step_error(d) or 0.0) for d in devices), default=0.0)
    found = (
        (
            sum(bool(not_in_force(d)) for d in devices),
            "ran with a limit that was not in force; the figures of such a device are not its board's",
        ),
        (
            sum(d.asked == Limits() for d in devices),
            "ran without any limit: the speed of such a device, and what it took of this machine, are not its board's",
        ),
        (
            sum(map(far_off, devices)),
            f"took over {TOLERANCE * 100:.0f} % longer or shorter for a step than the catalogue says,"
            f" by up to {worst * 100:.0f} %",
        ),
        (
            sum(d.calibration is None and d.enrolled_s is not None and d.asked != Limits() for d in devices),
            "ran without a calibration: the speed is this machine's, not the board's",
        ),
        (sum(d.out_of_memory > 0 for d in devices), "ran out of memory, and the kernel killed something"),
        (sum(d.enrolled_s is None for d in devices), "never enrolled"),
        (sum(d.rejected > 0 for d in devices), "had updates rejected"),
    )
    return [f"{_count(number, 'device')} {text}" for number, text in found if number]


def run_figures(record: FleetRecord) -> str:
    """The large figures."""
    devices = record.devices
    emulated = sum(not d.native for d in devices)
    native = f"{emulated} not native" if emulated else "all native"
    boards = len({d.board for d in devices})
    last = record.rounds[-1].at_s if record.rounds else None
    return figures(
        [
            (
                "Accuracy",
                percent_text(accuracy(record)),
                "of the last round" if accuracy(record) is not None else "never evaluated",
            ),
            (
                "Rounds",
                str(len(record.rounds)),
                f"the last at {duration_text(last)} of the emulated clock" if record.rounds else "none was committed",
            ),
            ("Real time", duration_text(record.seconds), "in all, with start and end"),
            (
                "Devices",
                str(len(devices)),
                f"of {_count(boards, 'board')}, {native}",
            ),
            (
                "Sent",
                bytes_text(sum(d.bytes_up for d in devices)),
                f"up, and {bytes_text(sum(d.bytes_down for d in devices))} down",
            ),
            ("Energy", energy_text(sum_of(devices, lambda d: d.energy_wh)) if devices else MISSING, "estimated"),
        ]
    )


def clock_section(record: FleetRecord) -> str:
    """What the factor of the clock means, and the notes of the run."""
    notes = "".join(f"<li>{clean(note)}</li>" for note in record.notes)
    return (
        f'<section class="text"><h2>The clock{" and notes" if notes else ""}</h2><p>{clean(_clock_text(record))}</p>'
        + (f"<ul>{notes}</ul>" if notes else "")
        + "</section>"
    )


def _clock_text(record: FleetRecord) -> str:
    if not (math.isfinite(record.clock) and record.clock > 0):
        return "The record does not say how long an emulated second lasted."
    cores, wanted = record.cores, asked_cores(record)
    busy = (
        f"All devices busy at once take {wanted:.3g} of this machine's {_count(cores, 'core')}"
        if wanted is not None
        else f"This machine has {_count(cores, 'core')}, and not every device has a limit on them"
    )
    if factor(record) == 1:
        how = "An emulated second lasted a real one, so times are the same on either clock."
    elif factor(record) > 1:
        how = (
            f"An emulated second lasted {record.clock:.3g} real ones: everything, links and faults too, ran"
            f" {record.clock:.3g} times slower than on the boards, so that the devices get the processor time that"
            " they would have."
        )
    else:
        how = (
            f"An emulated second lasted {record.clock:.3g} real ones: the run was {1 / record.clock:.3g} times faster"
            " than the boards would be."
        )
    return f"{how} {busy}. Times here are of the emulated clock unless they are called real."


def _count(number: int, noun: str) -> str:
    return f"{number_text(number)} {noun}{'' if number == 1 else 's'}"
