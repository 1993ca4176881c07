"""Models that see an event as an image: pixels are hits on planes, one axis or two in each."""
