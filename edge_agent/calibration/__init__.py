"""What a device is measured with before anything is deployed to it: probes, their times, and prices fitted to them."""
