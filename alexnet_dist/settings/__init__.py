"""Every setting of a run, and how a file and a command line become one."""
