"""A file of any size, answered or measured with an artifact by one process or by many, the same to the last byte.

Start with ``score`` (answers) and ``evaluate`` (figures): each says what is done to a window of rows, by ``answering``
and ``measuring``. ``run`` goes over a source: ``rows`` cuts it into blocks, ``workers`` works on them here or by Ray
Data, ``parts`` keeps what is finished. ``folders`` reads and writes files of this machine and objects of a store.
"""
