"""Importing this begins the watch on the launcher: the first of a verb's own imports, since torch takes seconds."""

from hpctrack.parallel.orphans import end_with_launcher

end_with_launcher()
