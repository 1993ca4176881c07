"""What `hpctrack inspect` says of each kind of thing."""
