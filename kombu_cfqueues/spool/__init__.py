"""The spool: the machine as one publisher.

The allowance is 4 requests a second for a whole token, and the usual deployment is many
single-threaded processes.  Here they share the allowance, and the requests: whoever gets the next
permit carries what the others wait to publish.

::

    place      where the file may be
    database   the file: SQLite, used politely
    posters    who is alive: kernel locks
    schema     what is in it
    turns      whose turn the next permit is
    bucket     the allowance in it
    file       it, as one process has it open
    intake      messages enter, and their outcomes come back
    claims     messages that one process may post, with their permit
    permits    for requests that carry no message
    outcome    what became of a message, told across processes
    carrier    posts a claim, and reads in the answer what becomes of each message
    line       the callers of a process who wait for their confirmation
    relay      who empties the spool
    listing    what is in it, for people
    gate       the allowance, as the client of the API wants it
"""
