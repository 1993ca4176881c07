"""Files and folders: whole under their final names or not there, one writer at a time, JSON lines, outputs."""
