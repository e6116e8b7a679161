"""A head of a device's own: trained here on the fleet's features, mixed with the fleet's head when used, never sent."""
