"""Experts that play demonstrations: one file per simulator."""
