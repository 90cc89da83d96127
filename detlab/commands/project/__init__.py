"""What `detlab init` writes: mine.py and test_mine.py are copied as they are, the other files are the texts of `texts`."""
