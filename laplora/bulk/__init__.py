"""A file of any size, answered or measured with an artifact by one process or by many, the same to the last byte.

Start with ``predict`` (answers) and ``evaluate`` (figures): each says what is done to a window of rows, by
``answering``. ``run`` goes over a source: ``rows`` cuts it into blocks, ``workers`` works on them here or by Ray Data,
``parts`` keeps what is finished.
"""
