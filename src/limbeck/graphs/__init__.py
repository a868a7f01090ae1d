"""Graphs: what comes in, how it is split, and what a setting lets training see."""
