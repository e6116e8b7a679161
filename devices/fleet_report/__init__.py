"""The report of an emulated fleet: the record of a run as a file, and as one page of HTML."""

from devices.fleet_report.outcome import went_as_planned
from devices.fleet_report.page import render_fleet
from devices.fleet_report.record_file import read_record, write_record

__all__ = ["read_record", "render_fleet", "went_as_planned", "write_record"]
