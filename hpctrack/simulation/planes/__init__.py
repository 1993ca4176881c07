"""Toy detectors whose hits are pixels, as HEP.TrkX had them: planes, and the cylinders of its ramp challenge."""
