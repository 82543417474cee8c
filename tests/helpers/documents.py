"""A few documents, one of several lines."""

DOCUMENTS = ["First one,\nstill the first.", "Second – with ünicode.", "Third"]
