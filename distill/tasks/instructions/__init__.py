"""Instruction families by theme."""
