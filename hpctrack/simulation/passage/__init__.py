"""Particles on their way through the detector: passes of Fatras, decays and hadronic interactions between them."""
