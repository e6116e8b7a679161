"""Images of devices: `ensure` gives one of this code's agent, `clock_environment` shifts a device's clock in it."""

from devices.images.clock import clock_environment, set_clock
from devices.images.commands import ImageError
from devices.images.making import ensure

__all__ = ["ImageError", "clock_environment", "ensure", "set_clock"]
