"""Tests of boards, fleet files, and the arithmetic of an emulated fleet."""
