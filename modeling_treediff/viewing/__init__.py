"""Views for people: drafts of a text in a terminal, as GIF and as HTML; a page to explore a tree."""
