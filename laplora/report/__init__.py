"""One page from which an engineer decides whether to ship: a verdict, its evidence, and the rows behind it.

Read ``records`` first (what a report is made of), then ``verdict`` (the rule) and ``page`` (the HTML file). ``rows``
has the tables of rows and labels; ``charts`` says what is drawn, ``drawing`` draws it. Needs the extra ``report``.
"""
