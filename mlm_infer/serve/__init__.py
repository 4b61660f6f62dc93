"""`mlm-serve`: the methods of a `MaskFiller` over HTTP, and a page to try them on.

A request goes through the guards (who may ask, how large, how many at once), becomes a question with the options of the
Python method, is answered by the desk, and leaves as JSON. Needs the extra `[serve]`.
"""
