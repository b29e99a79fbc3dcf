"""How good probabilities are, and how sure one can be of that.

Read ``scores`` first (accuracy, NLL, ECE, Brier, everything of one method), then ``ranking`` (of mistakes) and
``detection`` (of shifted rows). ``noise`` and ``drift`` are for production; ``checks`` is what all of them refuse.
"""
