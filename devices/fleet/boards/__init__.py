"""The catalogue's files, a board each; devices/fleet/catalogue.py reads them."""
