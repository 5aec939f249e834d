"""thin"""


def write_report(store):
    pass
