"""Prompts: from the fields of an input to padded token ids.

Read ``templates`` first (text and label tokens), then ``rows`` (token ids and batches). ``cutting`` shortens a field of
what is too long, ``token_roles`` tells tokens of fields from the template's, ``token_bounds`` says what is certain
before text is tokenised, ``option_tokens`` asks each option of a question alone.
"""
