"""What a bundle will ask of a device: time, memory, disk and bytes, predicted before anything is deployed."""
