"""The spool: the machine as one publisher.

The allowance is 4 requests a second for a whole token, and the usual deployment is many
single-threaded processes.  Here they share the allowance, and the requests: whoever gets the next
permit carries what the others wait to publish.

A message's way, which `line` takes for callers who wait, and `relay` for what is spooled::

    intake     messages enter, and their outcomes come back
    claims     messages that one process may post, with their permit
    carrier    posts a claim, and reads in the answer what becomes of each message

What that stands on::

    gate       permits for requests that carry no message, as the client wants them
    turns      whose turn the next permit is
    bucket     the allowance in the file
    file       the file as one process has it open
    database   SQLite, used politely
    schema     what is in the file
    posters    who is there, and alive: kernel locks
    place      where the file may be

And for people::

    listing    what is in the file
"""
