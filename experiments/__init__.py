"""One file a result: a frozen configuration, a command, and the numbers to expect."""
