"""How many predictions a number of devices answers, and what a million of them costs.

Read ``costs`` first: seconds of device and host that an answer takes, measured. ``simulation`` is a discrete-event
simulation of the server and of a router in front of several, with the batcher's own rules, and ``against`` holds it to
a real server. ``capacity`` is the arithmetic, and ``cells`` simulates what it says. ``replicas`` measures Ray beside
one process. ``page`` writes what came of it into docs/scaling.md.
"""
