"""`python -m hpctrack VERB …` is `hpctrack VERB …`."""

from hpctrack.cli import main

raise SystemExit(main())
