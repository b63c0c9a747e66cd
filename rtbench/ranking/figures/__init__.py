"""Figures that a suite declares: checked against its plan, then filled from a board's rows. Plain data, which reports draw."""

from __future__ import annotations

from rtbench.ranking.figures.make import declared, make
from rtbench.ranking.figures.shapes import Axis, Figure, Line, Panel, Point

__all__ = ["Axis", "Figure", "Line", "Panel", "Point", "declared", "make"]
