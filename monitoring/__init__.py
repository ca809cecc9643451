"""Ledger rows in, a verdict out."""
