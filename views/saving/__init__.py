"""Any view as a page that opens without headscope and without a network, with its figures and its numbers as files.

    headscope save "map?head=L17H4" --to page.html

A view is what its address says, so saving it asks the dashboard for that address once more, without a browser, and
writes down what it answers: view.py reads the address, replay.py asks, elements.py writes, package.py makes the files.
"""
