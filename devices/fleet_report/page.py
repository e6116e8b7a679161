"""The report of an emulated fleet as one HTML file that needs nothing else."""

from html import escape

from devices.fleet.record import FleetRecord


def render_fleet(record: FleetRecord) -> str:
    """The HTML text, also well-formed XML."""
    return f'<!DOCTYPE html>\n<html lang="en"><head><title>{escape(record.fleet)}</title></head><body></body></html>\n'
