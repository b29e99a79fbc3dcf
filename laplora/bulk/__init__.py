"""A file of any size, answered or measured with an artifact by one process or by many, the same to the last byte.

Start with ``predict`` (answers) and ``evaluate`` (figures): each says what is done to a window of rows, by
``answering``. ``rows`` cuts a source into blocks, ``workers`` goes over them here or by Ray Data, and ``parts`` keeps
what is finished.
"""
