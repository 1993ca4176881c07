"""hpctrack: distributed training of charged-particle track reconstruction on TrackML events."""

__version__ = "0.1.0"
