"""How labelled rows that training did not see correct the answers to others, in closed form.

``last_layer`` has the kernel between rows, ``mode`` what the labels make of it, ``left_out`` each row without its own
label, ``choice`` how wide the kernel is.
"""
